#!/usr/bin/perl

# Two engines on one Redis, under moderate load, while Redis has one fault after the other: for an
# hour in check-long, for LLM_SOAK seconds otherwise. Every answer is right, and nothing grows.

use strict;
use warnings;

use lib 't/lib';
use LLM::Faults;
use LLM::Test;

my $seconds = $ENV{LLM_SOAK} // long(15, 3600);
my $patience = $ENV{LLM_SANITIZE} ? 300 : 30; # sanitizers are ten times slower
my $seed = $ENV{LLM_SEED} // time ^ $$;
srand $seed;
diag("LLM_SEED=$seed");

my $t = LLM::Test->new;
my @common = ('--max-context', '512', '--latent-memory', '6m');
my $redis = $t->redis(maxmemory => '64mb');
my $relay = $t->relay($redis);
my $faults = LLM::Faults->new($redis, $relay);
my $plain = $t->nginx(engine => $t->engine(args => \@common));
my @engines = map { $t->engine(args => [ @common, '--redis', $relay->url, '--secret-file',
    $t->secret, '--redis-deadline-ms', 200, '--redis-ttl', 30, '--redis-quota', '256m' ]) } 1 .. 2;
my @nodes = map { $t->nginx(engine => $_) } @engines;

my @prompts = map { [ map { 300 + int rand 3000 } 1 .. 100 + rand 350 ] } 1 .. 16;

sub request {
    my ($prompt) = @_;

    return { prompt => $prompt, max_tokens => 4, temperature => 0, ignore_eos => \1 };
}

my @texts = map { $plain->post('/v1/completions', request($_), timeout => $patience)->text } @prompts;

sub rss {
    my ($engine) = @_;

    return slurp('/proc/' . $engine->pid . '/status') =~ /^VmRSS:\s+(\d+)/m ? $1 : 0;
}

sub files { return scalar(() = glob '/proc/' . $_[0]->pid . '/fd/*') }

# A few requests at once, some of which are given up.
my ($asked, $wrong, $failed) = (0, 0, 0);

sub traffic {
    my @open;

    for (1 .. 3) {
        my $i = int rand @prompts;
        my $client = $nodes[ rand @nodes ]->client(timeout => $patience);

        $client->request('POST', '/v1/completions', json => request($prompts[$i]));
        rand() < 0.15 ? $client->close : push @open, [ $client, $i ];
    }
    for (@open) {
        my ($client, $i) = @$_;
        my $r = $client->response;

        $asked++;
        $r->status != 200 ? $failed++ : ($r->text // '') ne $texts[$i] ? $wrong++ : next;
        diag("status " . $r->status);
    }
}

my @names = $faults->names;
my $until = time + $seconds;
my ($n_faults, @rss, @files) = (0);

while (time < $until) {
    my $name = $names[ rand @names ];
    my $end = time + 0.2 + rand 2;

    $faults->begin($name);
    $n_faults++;
    traffic() while time < $end;
    $faults->end($name);
    $end = time + rand 2;
    traffic() while time < $end;
    if (time > $until - $seconds * 2 / 3 && !@rss) { # warm by now
        @rss = map { rss($_) } @engines;
        @files = map { files($_) } @engines;
    }
}

# and when all is well again
my @hits = map { $_->redis->{hits} } @engines;
for my $i (0 .. $#engines) {
    ok(wait_until($patience, sub { traffic(); $engines[$i]->redis->{hits} > $hits[$i] }),
        "engine $i found $hits[$i] pages in Redis, and more when there are no faults");
}

is($failed, 0, "$asked requests, $n_faults faults: none failed");
is($wrong, 0, 'and none got a wrong answer');
for my $i (0 .. $#engines) {
    my $grown = rss($engines[$i]) - $rss[$i];

    # the tier's buffers are touched when they are needed, all of them in an hour
    cmp_ok($grown, '<', long(192, 32) << 10, "engine $i grew by $grown kB")
        if !$ENV{LLM_SANITIZE};
    cmp_ok(files($engines[$i]) - $files[$i], '<', 8, 'and opened no files that it keeps');
    ok($engines[$i]->idle($patience), 'it is idle');
}

$t->finish;
