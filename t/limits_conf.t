#!/usr/bin/perl

# conf/llm-limits.conf, with keys of tenants of either plan.

use strict;
use warnings;

use lib 't/lib';
use LLM::Key;
use LLM::Test;

my $conf = slurp('conf/llm-limits.conf');
is($conf =~ s/^(\s+)# acme  team;$/$1acme team;/m, 1, 'a plan to choose');

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
$t->file('llm-limits.conf', $conf);
my %key = map { $_ => LLM::Key->new(tenant => $_) } qw(eve acme);
$t->file('llm.keys', join '', map { $_->line } values %key);
my $nginx = $t->nginx(http => 'include %%DIR%%/llm-limits.conf;',
    pass => 'llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/llm.keys;');

sub ask {
    my ($tenant, $prompt) = @_;

    return $nginx->post('/v1/completions', { prompt => $prompt }, headers => $key{$tenant}->bearer);
}

for my $plan ([ eve => 20_000 ], [ acme => 1_000_000 ]) {
    my ($tenant, $tokens) = @$plan;
    my $r = ask($tenant, 'prompt=1000 cached=800 tokens=100');

    is($r->status, 200, $tenant);
    is($r->header('x-ratelimit-limit-tokens'), $tokens, 'the tokens of its plan');
    my $left = $r->header('x-ratelimit-remaining-tokens');
    ok($left >= $tokens - 700 && $left < $tokens, 'of which it has used some');
    is($r->header('x-ratelimit-limit-requests'), 75, 'requests at once');
}

is(ask('eve', 'prompt=20000 tokens=1')->status, 400, 'what is too much for one');
is(ask('acme', 'prompt=20000 tokens=1')->status, 200, 'is not for the other');
my @many = map { my $c = $nginx->client; $c->request('POST', '/v1/completions',
    headers => $key{acme}->x_api_key, json => { prompt => 'tokens=1 first=60000' }); $c } 1 .. 32;
ok(wait_until(5, sub { $engine->counters->{requests} == 32 }), '32 at a time');
my $r = ask('acme', 'tokens=1');
is($r->status, 429, 'not one more');
is($r->json->{error}{type}, 'rate_limit_error', 'in the form that clients know');
is(ask('eve', 'tokens=1')->status, 200, 'others are not held up');
$_->close for @many;

$r = $nginx->post('/v1/completions', { prompt => 'tokens=1' }, headers => LLM::Key->new->bearer);
is($r->status, 401, 'a key of nobody');
is($r->header('x-ratelimit-limit-tokens'), undef, 'has no limits');

$t->finish;
