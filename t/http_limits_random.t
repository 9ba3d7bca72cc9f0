#!/usr/bin/perl

# Whatever happens to requests, the sum that is charged for is the sum of what the engine says it
# read and made: over thousands of requests of random sizes, whose clients leave at any time, of
# which some are refused by one limit when another has held tokens for them, through reloads; and,
# but for what is told of them, when workers are killed.
#
# The rate is one a minute, and no key is used for as long as that: so a bucket is its burst less
# what was charged.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;
use List::Util qw(sum0);

my $seed = $ENV{LLM_SEED} // time ^ $$;
srand $seed;
diag("LLM_SEED=$seed");

my $burst = 1_000_000_000;
my $at_once = 40;
my $a_round = long(200, 400);

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my $nginx = $t->nginx(
    workers => 2,
    http => <<'EOT',
        lingering_timeout 100ms;
        llm_limit_zone $http_key zone=sum:10m rate=1t/m;
        llm_limit_zone $http_key zone=gate:10m rate=6000000t/m;
        llm_limit_log_level info;
EOT
    server => "location /sum/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; llm_limit zone=sum burst=$burst; }",
    location => <<"EOT");
        llm_limit zone=sum burst=$burst nodelay;
        llm_limit zone=gate burst=6000;
        llm_limit_cached_discount 100;
        llm_max_tokens 500;
EOT
my (@keys, %seen);

# A request of any kind, in flight: its client.
sub begin {
    my $c = $nginx->client(timeout => 30);
    my @words = ('prompt=' . (100 + int rand 200), 'cached=' . int rand 100, 'tokens=' . int rand 60,
        'every=' . int rand 4, 'first=' . int rand 20, 'counted=' . int rand 10,
        'cancel=' . (0, 0, 30, 300)[ rand 4 ], 'end=' . int rand 10);

    push @words, 'status=' . (qw(failed queue_full tenant_full non_finite))[ rand 4 ] if rand() < 0.1;
    $c->request('POST', '/v1/completions',
        headers => { key => $keys[ rand @keys ] },
        json => {
            prompt => "@words", stream => rand() < 0.5 ? \1 : \0,
            (rand() < 0.7 ? (max_tokens => 1 + int rand 300) : ()),
            (rand() < 0.3 ? (n => 1 + int rand 3) : ()),
        });
    return $c;
}

sub left {
    my ($key) = @_;

    return $nginx->get('/sum/v1/models', headers => { key => $key })
        ->header('x-ratelimit-remaining-tokens');
}

sub told {
    return sum0($nginx->error_log =~ /gone and did not say .* given back: (\d+) tokens in zone "sum"/g);
}

sub used {
    my $n = $engine->counters;

    return $n->{read} - $n->{cached} + $n->{made};
}

# So many requests, with something that happens now and then: what was charged for them, and what
# the engine says.
my $round = 0;
sub round {
    my ($n, $happens) = @_;
    my $used = used();
    my @open;

    $round++;
    @keys = map { "round $round, key $_" } 1 .. 5;
    for my $i (1 .. $n) {
        push @open, begin();
        $happens->() if $i % ($n / 4) == $n / 8;
        while (@open >= $at_once || ($i == $n && @open)) {
            my ($c) = splice @open, rand @open, 1;
            my $end = rand;

            if ($end < 0.2) {
                $end < 0.1 ? $c->close : $c->reset;
            } elsif ($end < 0.3) {
                my $r = $c->response;
                $r->event for 1 .. rand 5;
                $seen{gone}++;
                $c->close;
            } else {
                my $r = $c->response;
                $r->body;
                $seen{ $r->status }++;
            }
        }
    }
    wait_until(20, sub { $engine->counters->{requests} == 0 }) or diag('the engine is not done');
    $used = used() - $used;

    # FINISHED may be on its way, and an old worker on its own
    my $charged;
    wait_until(5, sub { $charged = sum0(map { $burst - left($_) } @keys); $charged <= $used });
    return ($charged, $used);
}

for (1 .. long(2, 40)) {
    my ($charged, $used) = round($a_round, sub { $nginx->reload });

    is($charged, $used, "$a_round requests, four reloads: all $used tokens are charged for, no more");
}
is(told(), 0, 'nobody had to be told');

$t->allow(qr/exited on signal 9|shared memory zone "\w+" was locked by/);
for (1 .. long(1, 10)) {
    my $told = told();
    my ($charged, $used) = round($a_round, sub { kill 'KILL', ($nginx->workers)[ rand 2 ]; sleep 0.3 });

    $told = told() - $told;
    ok($charged <= $used && $used - $charged <= $told,
        "$a_round requests, four workers killed: $charged of $used tokens, $told that they held");
}
cmp_ok($seen{$_} // 0, '>', 0, "some were $_") for qw(200 429 500 503 gone);

$t->finish;
