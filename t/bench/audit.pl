#!/usr/bin/perl

# Can one tenant find out what another has asked? The audit of Gu et al. (Auditing Prompt Caching,
# ICML 2025) through the whole path: make bench-audit
#
# In each run an attacker times the first tokens of 250 prompts that a victim has just sent, and of
# 250 that nobody has sent, in random order; a two-sample Kolmogorov-Smirnov test says whether the
# two differ. With `llm_cache_scope tenant` it must find nothing: at p < 0.01 chance alone finds
# something in one run of a hundred. With `public` it must find the hits, or it is worth nothing.
#
# The verdict allows what chance brings: of 20 runs one may reject.

use strict;
use warnings;

use lib 't/lib';
use List::Util qw(shuffle);
use LLM::Test;
use Time::HiRes qw(time);

my $runs = $ARGV[0] // 20;
my $samples = $ARGV[1] // 250;

my $TOKENS = 80; # a page and a bit: small differences count
my $P = 0.01;

my $t = LLM::Test->new;
$t->engine(args => [ '--latent-memory', '64m' ]);

alarm 0; # this takes as long as it takes
srand(7);

sub fresh_prompt {
    return [ map { 100 + int rand 3900 } 1 .. $TOKENS ];
}

# Seconds until the one token of the answer is here.
sub ask {
    my ($client, $tenant, $prompt) = @_;
    my $begin = time;
    my $r = $client->post('/v1/completions', { prompt => $prompt, max_tokens => 1 },
        headers => { 'X-Tenant' => $tenant }, keepalive => 1);
    my $seconds = time - $begin;

    $r->status == 200 or die 'no answer: ' . $r->status;
    $r->body; # to its end: the connection stays
    return $seconds;
}

# The probability that two samples of one distribution differ as much (Kolmogorov-Smirnov,
# asymptotic).
sub ks {
    my ($x, $y) = @_;
    my @x = sort { $a <=> $b } @$x;
    my @y = sort { $a <=> $b } @$y;
    my ($i, $j, $d, $sum) = (0, 0, 0, 0);

    while ($i < @x && $j < @y) {
        my $v = $x[$i] < $y[$j] ? $x[$i] : $y[$j];

        $i++ while $i < @x && $x[$i] <= $v;
        $j++ while $j < @y && $y[$j] <= $v;
        my $gap = abs($i / @x - $j / @y);
        $d = $gap if $gap > $d;
    }

    my $n = sqrt(@x * @y / (@x + @y));
    my $l = ($n + 0.12 + 0.11 / $n) * $d;
    for my $k (1 .. 100) {
        $sum += 2 * (-1)**($k - 1) * exp(-2 * $k * $k * $l * $l);
    }
    return ($d, $l < 0.2 ? 1 : $sum < 0 ? 0 : $sum > 1 ? 1 : $sum);
}

# How many runs find a difference.
sub audit {
    my ($scope) = @_;
    my $nginx = $t->nginx(pass => 'llm_pass unix:%%SOCK%%; llm_tenant $http_x_tenant;',
        location => "llm_cache_scope $scope; keepalive_requests 1000000;");
    my $client = $nginx->client(timeout => 60);
    my $found = 0;

    ask($client, $_, fresh_prompt()) for ('victim', 'attacker') x 10;
    for my $run (1 .. $runs) {
        my (@hit, @miss);

        for my $hit (shuffle((1) x $samples, (0) x $samples)) {
            my $prompt = fresh_prompt();

            # the victim is as busy before either
            ask($client, 'victim', $hit ? $prompt : fresh_prompt());
            push @{ $hit ? \@hit : \@miss }, ask($client, 'attacker', $prompt);
        }
        my ($d, $p) = ks(\@hit, \@miss);
        $found++ if $p < $P;
        printf "%-6s run %2d: D %.3f, p %.3g\n", $scope, $run, $d, $p;
    }
    return $found;
}

$| = 1;
my ($tenant, $public) = (audit('tenant'), audit('public'));
my $good = $tenant <= $runs / 20 && $public >= $runs * 19 / 20;

printf "scope tenant: %d of %d runs find a difference at p < %s\n", $tenant, $runs, $P;
printf "scope public: %d of %d\n", $public, $runs;
print $good ? "verdict: other tenants' prompts cannot be told by time, shared ones can\n"
    : "verdict: NOT as it should be\n";
ok($good, 'the audit');
$t->finish;
