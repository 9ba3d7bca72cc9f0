#!/usr/bin/perl

# Limits of tokens before the real engine: what it counts is what is charged.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $burst = 100_000;
my $t = LLM::Test->new;
my $engine = $t->engine(args => [ '--max-context', '1024', '--latent-memory', '64m' ]);
my $nginx = $t->nginx(
    http => <<'EOT',
        llm_limit_zone $http_key zone=tokens:1m rate=1t/m;
        log_format llm '$http_key $llm_prompt_tokens $llm_completion_tokens $llm_finish_reason';
        access_log llm.log llm;
EOT
    server => <<"EOT",
        location /cached/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant test;
            llm_limit zone=tokens burst=$burst nodelay;
            llm_limit_cached_discount 100;
        }
        location /little/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant test; llm_limit zone=tokens burst=50 nodelay;
        }
        location /budget/v1/ { llm_pass unix:%%SOCK%%; llm_tenant test; llm_budget 40; }
EOT
    location => "llm_limit zone=tokens burst=$burst nodelay;");
my $key;

sub begin {
    my ($location, $prompt, %more) = @_;
    my $c = $nginx->client(timeout => 30);

    $c->request('POST', "$location/v1/completions", headers => { key => $key },
        json => { prompt => $prompt, temperature => 0, %more });
    return $c;
}

sub ask { return begin(@_)->response }

sub charged {
    return $burst - $nginx->get('/v1/models', headers => { key => $key })
        ->header('x-ratelimit-remaining-tokens');
}

# answers

$key = 'answers';
my $sum = 0;
for my $more ({ max_tokens => 30 }, { max_tokens => 30, stream => \1,
    stream_options => { include_usage => \1 } }, { max_tokens => 20, n => 3, temperature => 1 },
    { max_tokens => 200, stop => [ "\n" ], ignore_eos => \1 }, {}) {
    my $r = ask('', 'Once upon a time, there was a', %$more);

    is($r->status, 200, 'answered');
    $r->text;
    $sum += $r->usage->{total_tokens};
    ok(wait_until(5, sub { charged() == $sum }), 'charged for its usage')
        or diag(charged(), " for $sum");
}

# what it finds again need not be charged for

$key = 'cached';
my $long = join ' ', map { "word $_" } 1 .. 60;
ask('/cached', $long, max_tokens => 5)->text;
my $before = charged();
my $usage = ask('/cached', $long, max_tokens => 5)->usage;
cmp_ok($usage->{prompt_tokens_details}{cached_tokens}, '>=', 64, 'a prefix is found again');
is(charged() - $before, $usage->{total_tokens} - $usage->{prompt_tokens_details}{cached_tokens},
    'and costs nothing');

# clients that leave

$key = 'leaves';
my $c = begin('', 'Once upon a time', max_tokens => 900, ignore_eos => \1, stream => \1);
my $r = $c->response;
$r->event for 1 .. 3;
$c->close;
ok($engine->idle(10), 'the engine has stopped');
ok(wait_until(5, sub { slurp("$nginx->{dir}/llm.log") =~ /^leaves (\d+) (\d+) aborted/m }), 'logged');
my ($prompt, $seen) = slurp("$nginx->{dir}/llm.log") =~ /^leaves (\d+) (\d+) aborted/m;
cmp_ok(charged(), '>=', $prompt + $seen, 'charged for what came');
cmp_ok(charged(), '<', $prompt + 900, 'not for what did not');

# those that do not fit

$key = 'little';
$r = ask('/little', 'Once upon a time', ignore_eos => \1);
is($r->usage->{total_tokens}, 50, 'as long as the limit allows');
is($r->finish_reason, 'length', 'and said so');
$key = 'budget';
$r = ask('/budget', 'Once upon a time', ignore_eos => \1, stream => \1);
is($r->finish_reason, 'length', 'a stream is cut');
is($r->usage->{total_tokens}, 40, 'where its budget ends');
$key = 'too little';
is(ask('/little', $long, max_tokens => 1)->status, 400, 'a prompt that is too long');
is(ask('/little', 'Hi', max_tokens => 300)->status, 400, 'a completion that is');
is(charged(), 0, 'are not charged for');

$t->finish;
