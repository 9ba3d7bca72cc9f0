#!/usr/bin/perl

# Which request is for what: URIs, methods, tenants, models, health.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(name => 'fake,an/alias,an/alias');
my $other = $t->fake_engine(name => 'other');
my $second = $other->socket;
my $nginx = $t->nginx(server => <<"EOT");
    location = /health { llm_pass unix:%%SOCK%%; }
    location = /both/health { llm_model a unix:%%SOCK%%; llm_model b unix:$second; }
    location /api/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; }
    location /who/v1/ { llm_pass unix:%%SOCK%%; llm_tenant \$http_x_who; }
    location ~ ^/re { llm_pass unix:%%SOCK%%; llm_tenant a; }
    location /two/v1/ {
        llm_tenant a;
        llm_model first unix:%%SOCK%%;
        llm_model 'second "model"' unix:$second default;
        llm_model third unix:%%DIR%%/nobody.sock;
    }
    location /none/v1/ {
        llm_tenant a;
        llm_model first unix:%%SOCK%%;
        llm_model second unix:%%SOCK%%;
    }
    location /if/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; if (\$http_x_who) { set \$who me; } }
    location /except/v1/ {
        llm_pass unix:%%SOCK%%; llm_tenant a; llm_max_tokens 5; limit_except GET { allow all; }
    }
    location /ssi/ { ssi on; alias %%DIR%%/; default_type text/html; }
EOT

sub status_is {
    my ($method, $uri, $want, %o) = @_;
    my $c = $nginx->client;

    $c->request($method, $uri, %o);
    my $r = $c->response;
    is($r->status, $want, "$method $uri: $want");
    if ($method ne 'HEAD') {
        ok(ref $r->json eq 'HASH', "$method $uri: JSON");
    }
    like($r->header('x-request-id'), qr/^req_[0-9a-f]{32}$/, "$method $uri: x-request-id");
    return $r;
}

sub error_is {
    my ($method, $uri, $status, $type, $code, %o) = @_;
    my $r = status_is($method, $uri, $status, %o);

    is($r->header('Content-Type'), 'application/json', "$method $uri: content type");
    if ($method ne 'HEAD') {
        my $e = $r->json->{error};
        is($e->{type}, $type, "$method $uri: type");
        is($e->{code}, $code, "$method $uri: code");
        ok(length $e->{message} && exists $e->{param}, "$method $uri: message, param");
    }
    return $r;
}

my %ask = (json => { prompt => 'x' });
my %chat = (json => { messages => [ { role => 'user', content => 'x' } ] });

# what follows the last /v1/ of the normalised URI

status_is('POST', $_, 200, %ask)
    for qw(/v1/completions /api/v1/completions //v1//completions /v1/./x/../completions
    /api/v1/v1/completions /v1/%63ompletions /v1/completions?x=/v1/y http://localhost/v1/completions
    /re/v1/completions);
status_is('POST', $_, 200, %chat) for qw(/v1/chat/completions /api/v1/chat/completions);
error_is('POST', $_, 404, 'invalid_request_error', 'unknown_url', %ask)
    for qw(/v1/ /v1/x /v1/completions/ /v1/Completions /v1/completions/x /v1/chat /v1/modelss
    /re/completions /re/v1 /v1/health /api/v1/health);

# methods

for my $method (qw(GET HEAD PUT DELETE PATCH OPTIONS)) {
    my $r = error_is($method, '/v1/completions', 405, 'invalid_request_error',
        'method_not_supported');
    is($r->header('Allow'), 'POST', "$method: Allow");
}
is(error_is('POST', '/v1/models', 405, 'invalid_request_error', 'method_not_supported', %ask)
    ->header('Allow'), 'GET, HEAD', 'Allow of models');
is(error_is('PUT', '/v1/models', 405, 'invalid_request_error', 'method_not_supported')
    ->json->{error}{message}, 'This method is not allowed here', 'words of a 405');
error_is('POST', '/health', 405, 'invalid_request_error', 'method_not_supported', %ask);

# tenants

error_is('POST', '/who/v1/completions', 401, 'authentication_error', 'invalid_api_key', %ask);
is(error_is('GET', '/who/v1/models', 401, 'authentication_error', 'invalid_api_key')
    ->header('WWW-Authenticate'), 'Bearer', 'WWW-Authenticate');
status_is('POST', '/who/v1/completions', 200, %ask, headers => { 'X-Who' => 'me' });
status_is('POST', '/who/v1/completions', 200, %ask, headers => { 'X-Who' => 'm' x 255 });
status_is('POST', '/who/v1/completions', 401, %ask, headers => { 'X-Who' => 'm' x 256 });
status_is('POST', '/who/v1/completions', 401, %ask, headers => { 'X-Who' => '*public*' });

# blocks inside a location serve as it does, with large bodies, too: these are parsed in a thread

for my $pad (0, 100_000) {
    my %large = (json => { prompt => 'x' x ($pad + 1) });
    status_is('POST', '/if/v1/completions', 200, %large, headers => { 'X-Who' => 'me' });
    status_is('POST', '/except/v1/completions', 200, %large);
}
error_is('POST', '/if/v1/nothing', 404, 'invalid_request_error', 'unknown_url', %ask,
    headers => { 'X-Who' => 'me' });
error_is('POST', '/except/v1/completions', 400, 'invalid_request_error', undef,
    json => { prompt => 'x', max_tokens => 6 });

# models

my $r = status_is('GET', '/v1/models', 200);
is_deeply($r->json, { object => 'list', data => [ map +{ id => $_, object => 'model',
    created => 1700000000, owned_by => 'ngx-llm' }, 'fake', 'an/alias' ] },
    'list of models, a name that is said twice once');
is($nginx->client->get('/v1/models', body => 'x' x 10000)->status, 200, 'a body is dropped');
$r = status_is('HEAD', '/v1/models', 200);
ok($r->header('Content-Length') > 100 && $r->body eq '', 'HEAD');
is(status_is('GET', '/v1/models/fake', 200)->json->{id}, 'fake', 'one model');
is(status_is('GET', '/v1/models/an/alias', 200)->json->{id}, 'an/alias', 'a name with a slash');
error_is('GET', '/v1/models/nope', 404, 'invalid_request_error', 'model_not_found');
error_is('GET', '/v1/models/', 404, 'invalid_request_error', 'unknown_url');

is_deeply([ map { $_->{id} } @{ status_is('GET', '/two/v1/models', 200)->json->{data} } ],
    [ 'first', 'second "model"' ], 'configured models, those that are there');
is(status_is('GET', '/two/v1/models/second%20%22model%22', 200)->json->{id}, 'second "model"',
    'an escaped name');
error_is('GET', '/two/v1/models/third', 503, 'server_error', 'engine_down');
error_is('GET', '/two/v1/models/fourth', 404, 'invalid_request_error', 'model_not_found');

# the model field

sub asked {
    my ($uri, $model, %more) = @_;

    return $nginx->post($uri, { prompt => 'answer=request', defined $model ? (model => $model) : (),
        %more });
}

is(asked('/v1/completions', 'fake')->json->{model}, 'fake', 'the model asked for');
is(asked('/v1/completions', 'an/alias')->json->{model}, 'an/alias', 'by another name');
is(asked('/v1/completions')->json->{model}, 'fake', 'none asked for: the first name');
for my $bad ('nope', 'Fake', '', 'f' x 129, '../../etc/passwd', 'fake ', 'x' x 100_000) {
    $r = asked('/v1/completions', $bad);
    is($r->status, 404, 'an unknown model');
    is($r->json->{error}{code}, 'model_not_found', 'an unknown model: code');
    is($r->json->{error}{param}, 'model', 'an unknown model: param');
}
is(asked('/v1/completions', 5)->status, 400, 'a model that is no string');

my $before = $other->counters->{submitted};
is(asked('/two/v1/completions', 'first')->json->{model}, 'first', 'the first of several');
is($other->counters->{submitted}, $before, 'and its engine');
is(asked('/two/v1/completions', 'second "model"')->json->{model}, 'second "model"', 'the second');
is($other->counters->{submitted}, $before + 1, 'and its engine');
is(asked('/two/v1/completions')->json->{model}, 'second "model"', 'the default');
is(asked('/two/v1/completions', 'third')->status, 503, 'one whose engine is not there');
is(asked('/two/v1/completions', 'fake')->status, 404, "not the engine's own name");
$r = asked('/none/v1/completions');
is($r->status, 400, 'several and no default');
is($r->json->{error}{param}, 'model', 'it must be named');

# health

is_deeply(status_is('GET', '/health', 200)->json, { status => 'ok' }, 'healthy');
status_is('HEAD', '/health', 200);
for my $state ([ loading => 'engine_loading' ], [ draining => 'engine_draining' ],
    [ failed => 'engine_failed' ]) {
    $engine->set("state=$state->[0]");
    $r = error_is('GET', '/health', 503, 'server_error', $state->[1]);
    ok($r->header('Retry-After') > 0, "$state->[0]: Retry-After");
}
status_is('GET', '/both/health', 503);
$engine->set('state=ready');
status_is('GET', '/health', 200);
status_is('GET', '/both/health', 200);

# conditions are for files

for my $condition ([ 'If-Match', '"x"' ], [ 'If-None-Match', '*' ],
    [ 'If-Unmodified-Since', 'Tue, 15 Nov 1994 12:45:26 GMT' ]) {
    status_is('GET', '/v1/models', 200, headers => {@$condition});
    status_is('POST', '/v1/completions', 200, %ask, headers => {@$condition});
}

# subrequests are nobody's requests

$t->file('index.html', '[<!--# include virtual="/v1/models" -->]');
is($nginx->get('/ssi/index.html')->body =~ /owned_by/, '', 'no answer to a subrequest');
ok($nginx->wait_log(qr/called by a subrequest/), 'but a line in the log');

$t->finish;
