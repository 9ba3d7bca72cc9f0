#!/usr/bin/perl

# Every way a request fails, and what its client is told: before the first byte by a status, after
# it by an event and a broken end.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(set => 'max_context=100');
my $nginx = $t->nginx(
    http => <<'EOT',
        log_format llm '$status $llm_finish_reason $llm_request_id $llm_prompt_tokens $uri';
        access_log llm.log llm;
        limit_req_zone $http_x_limited zone=limited:1m rate=1r/m;
        server {
            listen 127.0.0.1:%%PORT3%%;
            add_header Retry-After $http_x_after always;
            add_header x-request-id another always;
            return 503;
        }
EOT
    server => <<'EOT',
        listen 127.0.0.1:%%PORT2%% http2;
        llm_tenant test;
        location /pages/v1/ {
            llm_pass unix:%%SOCK%%;
            llm_intercept_errors on;
            error_page 400 = @bad;
            error_page 503 /busy.html;
            error_page 401 /busy.html;
        }
        location @bad { return 418 "a teapot for $llm_request_id"; }
        location = /busy.html { return 200 "busy"; }
        location /ignored/v1/ {
            llm_pass unix:%%SOCK%%;
            error_page 400 404 503 /busy.html;
        }
        location /fallback/v1/ {
            llm_pass unix:%%DIR%%/nobody.sock;
            llm_intercept_errors on;
            error_page 503 = @second;
        }
        location /elsewhere/v1/ {
            llm_pass unix:%%DIR%%/nobody.sock;
            llm_intercept_errors on;
            error_page 503 = @elsewhere;
        }
        location @elsewhere { proxy_pass http://127.0.0.1:%%PORT3%%; }
        location @second { llm_pass unix:%%SOCK%%; }
        location /calm/v1/ {
            llm_pass unix:%%DIR%%/nobody.sock;
            llm_intercept_errors on;
            error_page 503 =200 /busy.html;
        }
        location /model/v1/ {
            llm_model one unix:%%DIR%%/nobody.sock;
            llm_model two unix:%%SOCK%%;
            llm_intercept_errors on;
            error_page 503 = @third;
        }
        location @third { llm_model one unix:%%SOCK%%; }
        location /password/v1/ {
            llm_pass unix:%%SOCK%%; auth_basic x; auth_basic_user_file %%DIR%%/users;
        }
        location /denied/v1/ { llm_pass unix:%%SOCK%%; deny all; }
        location /limited/v1/ { llm_pass unix:%%SOCK%%; limit_req zone=limited; limit_req_status 429; }
        location /asked/v1/ { llm_pass unix:%%SOCK%%; auth_request /verdict; }
        location = /verdict { return 403; }
        location /first/v1/ { llm_pass unix:%%SOCK%%; llm_first_token_timeout 300ms; llm_timeout 0; }
        location /total/v1/ {
            llm_pass unix:%%SOCK%%; llm_timeout 300ms; llm_keepalive_interval 100ms;
        }
        location /queue/v1/ { llm_pass unix:%%SOCK%%; llm_queue_timeout 100ms; }
EOT
);
$t->file('users', "me:{PLAIN}secret\n");
my $h2_port = $nginx->{ports}{2};

sub ask {
    my ($prompt, %more) = @_;
    my $uri = delete $more{uri} // '/v1/completions';

    return $nginx->post($uri, { prompt => $prompt, %more });
}

sub error_is {
    my ($name, $r, $status, $code, $message) = @_;

    is($r->status, $status, "$name: status");
    is($r->header('Content-Type'), 'application/json', "$name: type of the answer");
    like($r->header('x-request-id'), qr/^req_/, "$name: x-request-id");
    my $e = ($r->json // {})->{error} // {};
    is($e->{code}, $code, "$name: code");
    like($e->{message}, $message, "$name: message") if $message;
    is($e->{type}, $status == 401 ? 'authentication_error' : $status == 429 ? 'rate_limit_error'
        : $status == 403 ? 'permission_error' : $status < 500 ? 'invalid_request_error'
        : 'server_error', "$name: type");
    if ($status == 503 || $status == 429) {
        like($r->header('Retry-After') // 'none', qr/^[1-9]\d*$/, "$name: Retry-After");
    }
    return $e;
}

# --- refused by the engine ---

my @refusals = (
    [ cancelled => 500, 'cancelled' ], [ revoked => 401, 'invalid_api_key' ],
    [ invalid => 400, undef ], [ context_length => 400, 'context_length_exceeded' ],
    [ prompt_length => 400, 'prompt_length_exceeded' ], [ queue_full => 503, 'engine_full' ],
    [ tenant_full => 429, 'tenant_full', qr/requests or tokens/ ],
    [ draining => 503, 'engine_draining' ],
    [ timeout_queue => 503, 'queue_timeout', qr/does not get its turn in time/ ],
    [ timeout_first_token => 503, 'first_token_timeout' ], [ timeout => 503, 'timeout' ],
    [ non_finite => 500, 'non_finite' ], [ failed => 500, 'engine_failed' ],
);
for my $refusal (@refusals) {
    my ($status, $http, $code, $message) = @$refusal;

    for my $stream (\0, \1) {
        error_is("$status, stream $$stream", ask("status=$status", stream => $stream), $http, $code,
            $message);
    }
    # with the tokens that came in the same instant there still is a status to give, later not
    error_is("$status after it was counted", ask("status=$status first=20", stream => \1), $http,
        $code);
    error_is("$status beside tokens", ask("status=$status tokens=2", stream => \1), $http, $code);
    my $r = ask("status=$status tokens=2 end=50", stream => \1);
    is($r->status, 200, "$status in a stream: status");
    is($r->text, 't0 t1', "$status in a stream: what came before");
    is($r->api_error->{code}, $code, "$status in a stream: code");
    ok(!$r->done, "$status in a stream: no [DONE]");
    ok(!$r->complete, "$status in a stream: no end of the body");
}
is(ask('status=invalid')->json->{error}{message}, 'the fake engine refuses', 'the engine\'s words');
is(ask("status=queue_full retry=$_->[0]")->header('Retry-After'), $_->[1], 'the engine\'s time')
    for [ 4000, 4 ], [ 4100, 5 ], [ 4_294_967_294, 3600 ];

my $e = ask('status=context_length prompt=90', max_tokens => 20)->json->{error};
is($e->{message}, "This model's maximum context length is 100 tokens. However, you requested 110 "
    . 'tokens (90 in the prompt, 20 in the completion). Please reduce the length of the prompt or '
    . 'completion.', 'context length: the words of OpenAI');
is($e->{param}, 'prompt', 'context length: param');
$e = ask('status=context_length prompt=101')->json->{error};
is($e->{message}, "This model's maximum context length is 100 tokens. However, your prompt resulted "
    . 'in 101 tokens. Please reduce the length of the prompt.', 'a prompt alone too long');
$e = $nginx->post('/v1/chat/completions', { max_tokens => 20,
    messages => [ { role => 'user', content => 'status=context_length prompt=90' } ] })->json->{error};
like($e->{message}, qr/\(90 in the messages, 20 in the completion\)/, 'context length of a chat');
is($e->{param}, 'messages', 'context length of a chat: param');
like(ask('status=prompt_length prompt=70')->json->{error}{message},
    qr/^At most 100 tokens are allowed in the prompt\. However, your prompt resulted in 70/,
    'prompt length');

# --- the connection after an error ---

my $c = $nginx->client;
for my $prompt ('status=queue_full', 'status=failed', 'status=invalid') {
    ok($c->post('/v1/completions', { prompt => $prompt }, keepalive => 1)->complete, 'kept');
}
is($c->post('/v1/completions', { prompt => 'tokens=1' }, keepalive => 1)->text, 't0', 'and used');
my $r = $c->post('/v1/completions', { prompt => 'tokens=1 end=50 status=failed', stream => \1 },
    keepalive => 1);
ok(!$r->complete, 'a broken stream');
ok($c->closed(2), 'ends its connection');

my $h2 = LLM::HTTP2->new(port => $h2_port);
my $ok = $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=50 every=10',
    stream => \1 });
my $broken = $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=2 end=50 status=failed',
    stream => \1 });
my $a = $h2->answer($broken);
like($a->{body}, qr/data: \{"error":\{[^\n]*\}\}\n\n\z/, 'HTTP/2: the event');
ok(!$a->{complete} && defined $a->{reset}, 'HTTP/2: the stream is reset');
like($h2->answer($ok)->{body}, qr/t49.*\[DONE\]/s, 'HTTP/2: the others go on');
ok($h2->ping, 'HTTP/2: and the connection');
$h2->close;

# --- time ---

my $start = time;
error_is('the first token', ask('hang=first', uri => '/first/v1/completions'), 503,
    'first_token_timeout', qr/first token/);
ok(time - $start > 0.3 && time - $start < 5, 'in its time');
$r = ask('tokens=1 hang=end', uri => '/first/v1/completions', stream => \1);
is($r->event->{json}{choices}[0]{text}, 't0', 'only the first');
sleep 1;
is($r->read_some(0.01), undef, 'has that time');
$r->{client}->close;
error_is('the whole', ask('tokens=1 hang=end', uri => '/total/v1/completions'), 503, 'timeout',
    qr/answer took too long/);
$r = ask('tokens=1 hang=end', uri => '/total/v1/completions', stream => \1);
is($r->api_error->{code}, 'timeout', 'the whole, streamed');
ok(!$r->complete, 'the whole, streamed: broken');
$r = ask('hang=first', uri => '/total/v1/completions', stream => \1);
is($r->status, 200, 'after a comment there is no status');
is($r->api_error->{code}, 'timeout', 'but an event');
error_is('the queue', ask('counted=5000 deadlines=on', uri => '/queue/v1/completions'), 503,
    'queue_timeout');
ok($engine->idle, 'what took too long was cancelled');

# --- pages of the operator ---

$r = ask('status=invalid', uri => '/pages/v1/completions');
is($r->status, 418, 'a named location');
like($r->body, qr/^a teapot for req_\w{32}$/, 'knows the request');
is($r->header('x-request-id'), ($r->body =~ /(req_\w+)/)[0], 'and so does the header');
$r = ask('status=queue_full', uri => '/pages/v1/completions');
is($r->body, 'busy', 'a page');
is($r->status, 503, 'and its status');
ok($r->header('Retry-After'), 'and its headers');
error_is('an error without a page', ask('status=failed', uri => '/pages/v1/completions'), 500,
    'engine_failed');
error_is('pages without llm_intercept_errors', ask('status=invalid', uri => '/ignored/v1/completions'),
    400, undef);
$r = ask('tokens=1 end=50 status=queue_full', uri => '/pages/v1/completions', stream => \1);
is($r->api_error->{code}, 'engine_full', 'no page in the middle of a stream');
$r = ask('tokens=2', uri => '/fallback/v1/completions');
is($r->text, 't0 t1', 'another engine as a page');
is($r->header('Retry-After'), undef, 'an answer says nothing of what failed before it');
$r = ask('tokens=2', uri => '/calm/v1/completions');
is($r->status, 200, 'a page with a status of its own');
is($r->header('Retry-After'), undef, 'and no more of the error');
$r = ask('tokens=2', uri => '/model/v1/completions', model => 'one', unheard_of => 1);
is($r->text, 't0 t1', 'a body that is read twice');
is($r->header('x-llm-ignored'), 'unheard_of', 'what was left out is said once');
for my $after ('77', '') {
    my $client = $nginx->client;

    $client->request('POST', '/elsewhere/v1/completions', json => { prompt => 'x' },
        headers => { 'X-After' => $after });
    $r = $client->response;
    is($r->status, 503, 'another server refuses too');
    is($r->header('Retry-After'), $after || undef, 'and says when to come back, if it does');
    is($r->header('x-request-id'), 'another', 'and its own name for the request');
}
is(ask('tokens=2', uri => '/fallback/v1/completions', stream => \1)->text, 't0 t1', 'streamed');

# variables outlive the redirect

wait_until(5, sub { slurp("$nginx->{dir}/llm.log") =~ /^418/m });
my ($logged) = slurp("$nginx->{dir}/llm.log") =~ /^(418 .*)$/m;
like($logged, qr/^418 error req_\w{32} 1 /, 'logged after an internal redirect');
$logged = (grep { m{/busy.html} } split /\n/, slurp("$nginx->{dir}/llm.log"))[0];
like($logged, qr/^503 error req_\w{32} 1 /, 'and after one to a page');

# --- what nginx itself refuses ---

sub nginx_error_is {
    my ($name, $uri, $status, $message) = @_;
    my $r = ask('x', uri => "$uri/v1/completions");

    error_is($name, $r, $status, undef);
    is($r->status, $status, "$name: status");
    is(($r->json // {})->{error}{message}, $message, "$name: words");
    return $r;
}

ok(nginx_error_is('auth_basic', '/password', 401, 'Authentication is required')
    ->header('WWW-Authenticate'), 'auth_basic: its header');
nginx_error_is('deny', '/denied', 403, 'Access is denied');
nginx_error_is('auth_request', '/asked', 403, 'Access is denied');
$nginx->client->post('/limited/v1/completions', { prompt => 'x' }, headers => { 'X-Limited' => 1 });
$r = $nginx->client->post('/limited/v1/completions', { prompt => 'x' }, headers => { 'X-Limited' => 1 });
is($r->status, 429, 'limit_req');
is($r->json->{error}{type}, 'rate_limit_error', 'limit_req: JSON');
is($nginx->client->get('/denied/v1/models')->json->{error}{type}, 'permission_error', 'a GET');
$c = $nginx->client;
$c->request('HEAD', '/denied/v1/models');
$r = $c->response;
is($r->status, 403, 'a HEAD');
ok($r->header('Content-Length') > 0 && $c->closed(2), 'a HEAD: no body');
like($nginx->get('/nowhere')->body, qr/<html>/, 'other locations keep their pages');

$t->finish;
