#!/usr/bin/perl

# A Redis that is bad in every way there is, under traffic: no request fails, every answer is what
# it is without Redis, no request is held up, nothing grows, and when it is good again it is used
# again.

use strict;
use warnings;

use lib 't/lib';
use LLM::Faults;
use LLM::Test;

my $t = LLM::Test->new;
srand(23);

# Sanitizers are ten times slower: they see some of the faults, with shorter prompts.
my $slow = $ENV{LLM_SANITIZE} ? 1 : 0;

# Eight pages of memory, which one prompt nearly fills: what is asked for is in Redis, or nowhere.
my @common = ('--max-context', '512', '--latent-memory', '6m');
my $redis = $t->redis(maxmemory => '512mb');
my $relay = $t->relay($redis);
my $faults = LLM::Faults->new($redis, $relay);
my $plain = $t->engine(args => \@common);
$redis->stop; # engines need none to start
my $engine = $t->engine(args => [ @common, '--redis', $relay->url, '--secret-file', $t->secret,
    '--redis-deadline-ms', $slow ? 300 : 30, '--log-level', 'info' ]);
my ($without, $with) = map { $t->nginx(engine => $_) } $plain, $engine;

sub request {
    my ($prompt) = @_;

    return { prompt => $prompt, max_tokens => 4, temperature => 0, ignore_eos => \1,
        stream => \1 };
}

# What it says, and when the first word came.
sub ask {
    my ($nginx, $prompt) = @_;
    my $c = $nginx->client(timeout => $slow ? 300 : 30);

    $c->request('POST', '/v1/completions', json => request($prompt));
    my $r = $c->response;
    my $asked = $r->times->{asked};
    my ($first, $text) = (undef, '');
    while (my $e = $r->event) {
        my $piece = ($e->{json} // {})->{choices}[0]{text} // next;
        $first //= $e->{time} - $asked if $piece ne '';
        $text .= $piece;
    }
    return ($r->status == 200 && $r->done ? $text : 'failed: ' . $r->status, $first // 30);
}

my @prompts = map { [ map { 300 + int rand 3000 } 1 .. ($slow ? 200 : 400) ] } 1 .. 4;
my (@texts, $slowest);
for my $prompt (@prompts, @prompts) {
    my ($text, $first) = ask($without, $prompt);

    push @texts, $text if @texts < @prompts;
    $slowest = $first if $first > ($slowest // 0);
}

sub novel { return [ map { 300 + int rand 3000 } 1 .. 200 ] }

# All of the known prompts, and a new one, which is to be saved.
sub traffic {
    my ($name) = @_;
    my ($wrong, $late) = (0, 0);

    for my $i (0 .. $#prompts) {
        my ($text, $first) = ask($with, $prompts[$i]);

        $wrong++ if $text ne $texts[$i];
        $late++ if $first > 3 * $slowest + 3; # who waits for Redis, waits longer
    }
    my ($text) = ask($with, novel());
    $wrong++ if $text =~ /^failed/;
    is($wrong, 0, "$name: every answer is right");
    is($late, 0, "$name: and comes in time") if !$slow;
}

sub rss { return slurp('/proc/' . $engine->pid . '/status') =~ /^VmRSS:\s+(\d+)/m ? $1 : 0 }

# Asks until a page comes from Redis.
sub recovers {
    my ($name) = @_;
    my $before = $engine->redis->{hits};
    my $i = 0;

    return ok(wait_until($slow ? 120 : 20, sub {
        ask($with, $prompts[ $i++ % @prompts ]);
        return $engine->redis->{hits} > $before;
    }), "$name: then Redis is used again") || diag(explain($engine->redis));
}

traffic('not there at the start');
$redis->start;
recovers('warm');
my $rss = rss();

my @names = $faults->names;
for my $name (@names[ map { $slow ? 5 * $_ : $_ } 0 .. $#names / ($slow ? 5 : 1) ]) {
    $faults->begin($name);
    traffic($name);
    $faults->end($name);
    recovers($name);
}

my $grown = rss() - $rss;
# the tier's buffers are touched when they are needed
cmp_ok($grown, '<', 192 << 10, "all of that took $grown kB") if !$slow;

# One reason after the other, by a fault of its kind, and by prompts that are new.
my %fault = (late => 'slow to answer', down => 'hangs up', refused => 'allows no GET',
    protocol => 'arrays in the place of pages', corrupt => 'has other values');
for my $why ($slow ? () : ('absent', sort keys %fault)) {
    my $before = $engine->redis->{$why};
    my $i = 0;

    $faults->begin($fault{$why}) if $fault{$why};
    ok(wait_until(20, sub {
        ask($with, $fault{$why} ? $prompts[ $i++ % @prompts ] : novel());
        return $engine->redis->{$why} > $before;
    }), "misses are counted by reason: $why");
    $faults->end($fault{$why}) if $fault{$why};
    recovers($why);
}
my $counts = $engine->redis;
cmp_ok($counts->{drops}, '>', 0, 'connections were dropped');
unlike($engine->log_text, qr/change-me|llm1:/, 'no password and no name of a key in the log');
cmp_ok(scalar(split /\n/, $engine->log_text), '<', 200, 'nor many lines');

$t->finish;
