#!/usr/bin/perl

# What is refused from the engines' states: before the body is read, with a time to come back.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
my ($engine, $other) = map { $t->fake_engine } 1, 2;
my ($one, $two) = map { $_->socket } $engine, $other;
my $nginx = $t->nginx(
    http => <<'EOT',
        client_max_body_size 8m;
        server { listen 127.0.0.1:%%PORT2%% http2; location /v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; } }
EOT
    server => <<"EOT");
        llm_tenant test;
        location /two/v1/ { llm_model a unix:$one; llm_model b unix:$two; }
        location /both/v1/ { llm_model m unix:$one unix:$two; }
        location /fallback/v1/ {
            llm_pass unix:$one;
            llm_intercept_errors on;
            error_page 503 = \@other;
        }
        location \@other { llm_pass unix:$two; }
EOT

# Headers alone, or with the question whether to send the body: all that comes back, within a tenth
# of a second from the first header.
sub headers_only {
    my ($uri, $more) = @_;
    my $c = $nginx->client(timeout => 5);

    $c->write("POST $uri HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n" . ($more // '') . "\r\n");
    1 while $c->{in} !~ /\r\n\r\n/ && $c->fill;
    $c->{timeout} = 0.1;
    1 while $c->fill;
    return $c->{in};
}

sub retry_after { $_[0]->header('Retry-After') // 0 }

my %refusals = (
    'queued=10 queue_limit=10' => 'engine_full', 'queued_tokens=500 token_limit=500' => 'engine_full',
    'queued_tokens=501 token_limit=500' => 'engine_full', 'state=draining' => 'engine_draining',
    'state=loading' => 'engine_loading', 'state=failed' => 'engine_failed',
);
my $ready = 'state=ready queued=0 queue_limit=0 queued_tokens=0 token_limit=0';

is($nginx->post('/v1/completions', { prompt => 'x' })->status, 200, 'at first it answers');
is($nginx->post('/two/v1/completions', { model => 'b', prompt => 'x' })->status, 200, 'both do');
like(headers_only('/v1/completions', "Expect: 100-continue\r\n"), qr{\AHTTP/1.1 100 Continue\r\n\r\n\z},
    'and wants the body');

for my $state (sort keys %refusals) {
    my $code = $refusals{$state};

    $engine->set($state);
    my $submitted = $engine->counters->{submitted};

    for my $expect ('', "Expect: 100-continue\r\n") {
        my $name = $state . ($expect ? ', asked first' : ', headers only');
        my $said = headers_only('/v1/completions', $expect);

        like($said, qr{\AHTTP/1.1 503 }, "$name: 503 at once");
        like($said, qr/"code":"$code"/, "$name: $code");
        like($said, qr/^Retry-After: [1-9]\d*\r$/m, "$name: when to come back");
        unlike($said, qr/ 100 Continue/, "$name: nothing asks for the body");
        like($said, qr/^Connection: close\r$/m, "$name: nobody waits for it") if $expect;
    }
    my $c = $nginx->client;
    $c->write("POST /fallback/v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            . "Content-Length: 14\r\nExpect: 100-continue\r\n\r\n");
    1 while $c->{in} !~ /\r\n\r\n/ && $c->fill;
    like($c->{in}, qr{\AHTTP/1.1 100 }, "$state: an error_page's engine wants the body");
    $c->{in} = '';
    $c->write('{"prompt":"x"}');
    is($c->response->status, 200, "$state: and answers");

    my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
    my $id = $h2->request('POST', '/v1/completions', body => '{', end => 0);
    $h2->answer($id, 5);
    is($h2->{streams}{$id}{status}, 503, "$state: HTTP/2");
    $h2->close;

    # one of two models: it takes the body to know

    like(headers_only('/two/v1/completions', "Expect: 100-continue\r\n"), qr{\AHTTP/1.1 100 },
        "$state: another model's engine may take it");
    my $r = $nginx->post('/two/v1/completions', { model => 'a', prompt => 'x' });
    is($r->json->{error}{code}, $code, "$state: once the model is known");
    ok(retry_after($r), "$state: when to come back");
    is($nginx->post('/two/v1/completions', { model => 'b', prompt => 'x' })->status, 200,
        "$state: the other model");
    is($nginx->post('/both/v1/completions', { prompt => 'x' })->status, 200,
        "$state: the other engine of a model");

    $other->set($state);
    like(headers_only($_), qr{\AHTTP/1.1 503 }, "$state: every engine, $_")
        for qw(/two/v1/completions /both/v1/completions);
    is($engine->counters->{submitted}, $submitted, "$state: it has seen none of them");
    $_->set($ready) for $engine, $other;
    is($nginx->post('/v1/completions', { prompt => 'x' })->status, 200, "$state: over");
}

# when to come back: the tokens that wait, as fast as they are read, and up to a quarter more

sub retries {
    my ($uri) = @_;
    my %seen = map { retry_after($nginx->post($uri, { prompt => 'x' })) => 1 } 1 .. 60;

    return sort { $a <=> $b } keys %seen;
}

for my $case ([ 10_000, 0, 1, 2 ], [ 500, 1000, 1, 2 ], [ 20_000, 1000, 20, 26 ],
    [ 10_000_000, 1000, 47, 60 ], [ 4_294_967_295, 1, 47, 60 ]) {
    my ($tokens, $rate, $low, $high) = @$case;

    $engine->set("queued_tokens=$tokens token_limit=500 prefill_rate=$rate");
    my @seen = retries('/v1/completions');
    ok($seen[0] >= $low && $seen[-1] <= $high, "$tokens at $rate a second") or diag("@seen");
    ok(@seen > 1, 'not all together') or diag("@seen");
}

# of several engines, the one that is less busy

$engine->set('queued=10 queue_limit=10 queued_tokens=40000 prefill_rate=1000');
$other->set('queued=5 queue_limit=5 queued_tokens=8000 prefill_rate=1000');
my @seen = retries('/both/v1/completions');
ok($seen[0] >= 8 && $seen[-1] <= 11, 'the less busy one') or diag("@seen");
$_->set($ready) for $engine, $other;

# an engine that is not there

$engine->kill;
ok(wait_until(5, sub { headers_only('/v1/completions', "Expect: 100-continue\r\n")
    =~ m{\AHTTP/1.1 503 .*"code":"engine_down"}s }), 'down: before the body');
$engine->start;
ok(wait_until(5, sub { $nginx->post('/v1/completions', { prompt => 'x' })->status == 200 }),
    'and there again');

$t->finish;
