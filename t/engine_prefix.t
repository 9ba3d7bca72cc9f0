#!/usr/bin/perl

# Prefixes that the real engine keeps: what is found, by whom and in which tier, that nothing of
# it changes an answer, and what the engine's state tells of it.

use strict;
use warnings;

use lib 't/lib';
use Digest::SHA qw(sha256);
use LLM::Test;
use Time::HiRes qw(sleep);

use constant PAGE => 64;

# offsets of engine/ipc/abi.h: struct llm_ipc_state, struct llm_ipc_tenant
use constant { COUNTERS => 2192, TENANTS => 4248, TENANT_SIZE => 168, COUNTS => 16 };

my $t = LLM::Test->new;
srand(7);

sub server {
    return join "\n", map { "location /$_/v1/ { llm_pass unix:%%SOCK%%;"
        . " llm_tenant \$http_x_tenant; llm_cache_scope $_; }" } qw(tenant public off);
}

# Ids of plain words, another prompt each time.
sub ids { map { 300 + int rand 3000 } 1 .. shift }

my $nginx;

sub ask {
    my ($tenant, $prompt, %more) = @_;
    my $scope = delete $more{scope} // 'tenant';
    my $r = $nginx->post("/$scope/v1/completions",
        { prompt => $prompt, max_tokens => 8, temperature => 0, ignore_eos => \1, %more },
        headers => { 'X-Tenant' => $tenant }, timeout => 60);

    is($r->status, 200, "$tenant asks") or diag($r->body);
    return $r;
}

sub cached { $_[0]->usage->{prompt_tokens_details}{cached_tokens} }

# --- the engine's state, as a worker reads it ---

sub counts {
    my ($bytes, $at) = @_;
    my @c = unpack('Q' . COUNTS, substr $bytes, $at);

    return {
        hits => $c[0], host_hits => $c[1], evicted => $c[4], host_evicted => $c[5],
        bytes => $c[8], host_bytes => $c[9], misses => $c[12],
    };
}

sub state_of {
    my ($engine) = @_;
    my $bytes = slurp($engine->_state_file);
    my ($offset, $n) = unpack('L2', substr $bytes, TENANTS);
    my %state = (all => counts($bytes, COUNTERS));

    for my $i (0 .. $n - 1) {
        my ($version, $digest) = unpack('L x4 a32', substr $bytes, $offset + $i * TENANT_SIZE);

        $state{$digest} = counts($bytes, $offset + $i * TENANT_SIZE + 40) if $version;
    }
    return \%state;
}

# The engine writes them a moment later.
sub counted {
    my ($engine, $what, $want) = @_;

    return wait_until(5, sub { (state_of($engine)->{all}{$what} // -1) == $want })
        || (diag(explain(state_of($engine)->{all})), 0);
}

# What the state says when it has told of all answers: it is written after they are sent.
sub settled {
    my ($engine) = @_;
    my ($now, $before) = (state_of($engine));

    do {
        $before = $now;
        sleep 0.6; # two beats of an idle engine
        $now = state_of($engine);
    } while (grep { $now->{all}{$_} != $before->{all}{$_} } keys %{ $now->{all} });
    return $now;
}

# --- in memory ---

my $engine = $t->engine(args => [ '--max-context', '2048', '--latent-memory', '256m' ]);
$nginx = $t->nginx(server => server());

my @prompt = ids(300);
my $cold = ask('anna', \@prompt);
is(cached($cold), 0, 'nothing is cached at first');
my $warm = ask('anna', \@prompt);
is(cached($warm), 256, 'then all full pages are');
is($warm->text, $cold->text, 'the same text');
is($warm->usage->{prompt_tokens}, 300, 'prompt_tokens');
is(cached(ask('anna', [ @prompt[ 0 .. 199 ], ids(100) ])), 192, 'of another ending the beginning');
is(cached(ask('bert', \@prompt)), 0, 'another tenant finds nothing');
is(cached(ask('bert', \@prompt, scope => 'public')), 0, 'the public has nothing');
is(cached(ask('cleo', \@prompt, scope => 'public')), 256, 'what is public is everybody\'s');
ask('cleo', [ ids(128) ], scope => 'off') for 1 .. 2;
is(cached(ask('anna', \@prompt, scope => 'off')), 0, 'off finds nothing');

my @whole = ids(2 * PAGE);
my $text = ask('anna', \@whole)->text;
$warm = ask('anna', \@whole);
is(cached($warm), 2 * PAGE - 1, 'of a prompt that is all cached the last token is run again');
is($warm->text, $text, 'the same text');
my $fork = ask('anna', \@whole, n => 3, temperature => 1, seed => 3);
is(cached($fork), 2 * PAGE - 1, 'a prompt with three choices counts once');
is($fork->usage->{prompt_tokens}, 2 * PAGE, 'so do its tokens');
is($fork->text(0), ask('anna', \@whole, n => 1, temperature => 1, seed => 3)->text,
    'the first choice is what one alone would be');
is(cached(ask('anna', [ \@whole, \@prompt ])), 2 * PAGE - 1 + 256, 'two prompts: of each its own');

# what the model said is cached as well
my $tale = 'Once upon a time';
my $said = ask('anna', $tale, max_tokens => 90);
my $on = ask('anna', $tale . $said->text . ' And then', max_tokens => 1);
cmp_ok($said->usage->{prompt_tokens}, '<', PAGE, 'a short prompt');
is(cached($on), PAGE, 'and a page of what came after it are found when the talk goes on');

# --- the counters ---

my $before = settled($engine);
my @fresh = ids(5 * PAGE);
my @clients = map { $nginx->client(timeout => 60) } 1 .. 4;
$_->request('POST', '/tenant/v1/completions', headers => { 'X-Tenant' => 'dora' },
    json => { prompt => \@fresh, max_tokens => 2, temperature => 0 }) for @clients;
my %texts = map { $_->response->text => 1 } @clients;
is(scalar keys %texts, 1, 'four at once: the same text');
ok(counted($engine, 'misses', $before->{all}{misses} + 5 * PAGE), 'their prefix is computed once');
my $after = settled($engine);
is($after->{all}{hits} - $before->{all}{hits}, 15 * PAGE, 'and found three times');
my $dora = $after->{ sha256('dora') };
is($dora->{misses}, 5 * PAGE, 'a tenant\'s own misses');
is($dora->{hits}, 15 * PAGE, 'hits');
ok($dora->{bytes} > 0 && $dora->{bytes} < $after->{all}{bytes}, 'and bytes');
ok($after->{ sha256('*public*') }{hits} == 256, 'of the public scope');
for my $what (sort keys %{ $after->{all} }) {
    my $sum = 0;

    $sum += $after->{$_}{$what} for grep { $_ ne 'all' } keys %$after;
    is($sum, $after->{all}{$what}, "all tenants together: $what");
}
ok($engine->idle, 'what is kept is no page in use');

$engine->stop;
$engine->start;
ok(wait_until(5, sub { $nginx->post('/tenant/v1/completions', { prompt => 'x', max_tokens => 1 },
    headers => { 'X-Tenant' => 'x' })->status == 200 }), 'the engine starts again');
is(cached(ask('anna', \@prompt)), 0, 'and has forgotten everything');
$engine->stop;

# --- the host tier: eight pages of memory, which one prompt fills ---

my @modes = ([], [ '--deterministic' ], [ '--latent-dtype', 'fp8' ], [ '--numerics', 'exact' ]);
my $gpu = ($ENV{LLM_DEVICE} // '') =~ /^cuda/;
$#modes = 0 if $ENV{LLM_SANITIZE}; # which is ten times slower

for my $mode (@modes) {
    my $small = $t->engine(args => [ '--max-context', '512', '--latent-memory',
        { '--latent-dtype' => '4m', '--numerics' => '11m' }->{ $mode->[0] // '' } // '6m',
        '--host-latent-memory', '64m', @$mode ]);
    my $name = "@$mode" || 'default';

    $nginx = $t->nginx(server => server(), engine => $small);
    my @prompts = map { [ ids(400 + $_) ] } 1 .. 4;
    my @texts = map { ask('anna', $_)->text } @prompts;
    my $cold = state_of($small)->{all};
    for my $i (0 .. 3) {
        my $r = ask('anna', $prompts[$i]);

        is(cached($r), 384, "$name: found though it had to leave");
        next if $gpu && "@$mode" !~ /deterministic|exact/; # bits depend on how a prompt is cut
        is($r->text, $texts[$i], "$name: the same text");
    }
    ok(counted($small, 'misses', 4 * 384), "$name: nothing is computed twice");
    my $warm = state_of($small)->{all};
    cmp_ok($warm->{host_hits}, '>=', 3 * 384, "$name: found in the host tier");
    cmp_ok($warm->{evicted}, '>', 0, "$name: pages had to make room");
    cmp_ok($warm->{host_bytes}, '>', 0, "$name: the host tier holds some");
    ok($small->idle, "$name: idle");
    $small->stop;
}

$t->finish;
