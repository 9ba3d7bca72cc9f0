#!/usr/bin/perl

# The same answers over HTTP/1.0, 1.1, kept connections, pipelines, TLS and HTTP/2.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
$t->certificate;
my $engine = $t->fake_engine;
my $nginx = $t->nginx(
    http => 'keepalive_requests 100000; lingering_timeout 200ms;',
    server => <<'EOT');
        listen 127.0.0.1:%%PORT2%% ssl http2;
        listen 127.0.0.1:%%PORT3%% http2;
        ssl_certificate %%DIR%%/tls.crt;
        ssl_certificate_key %%DIR%%/tls.key;
        client_max_body_size 8m;
EOT
my ($tls, $h2c) = @{ $nginx->{ports} }{2, 3};

my %whole = (prompt => 'tokens=3');
my %stream = (prompt => 'tokens=3', stream => \1);

sub whole_is {
    my ($name, $r) = @_;

    is($r->status, 200, "$name: status") or return;
    is($r->text, 't0 t1 t2', "$name: text");
    ok($r->complete, "$name: complete");
}

sub stream_is {
    my ($name, $r) = @_;

    whole_is($name, $r);
    ok($r->done, "$name: [DONE]");
}

# HTTP/1.0 has no chunks: the end of the connection is the end of the stream

my $c = $nginx->client;
$c->request('POST', '/v1/completions', json => \%stream, version => '1.0');
my $r = $c->response;
is($r->header('Transfer-Encoding'), undef, 'HTTP/1.0: no chunks');
stream_is('HTTP/1.0', $r);
$c = $nginx->client;
$c->request('POST', '/v1/completions', json => \%stream, version => '1.0',
    headers => { Connection => 'keep-alive' });
stream_is('HTTP/1.0, keep-alive asked for', $c->response);
ok($c->closed(2), 'but closed');
$c = $nginx->client;
for (1 .. 3) {
    $c->request('POST', '/v1/completions', json => \%whole, version => '1.0',
        headers => { Connection => 'keep-alive' });
    whole_is("HTTP/1.0, kept, $_", $c->response);
}

# HTTP/1.1

$c = $nginx->client;
for my $n (1 .. 3) {
    stream_is("kept, stream $n", $c->post('/v1/completions', \%stream, keepalive => 1));
    whole_is("kept, whole $n", $c->post('/v1/completions', \%whole, keepalive => 1));
    is($c->post('/v1/completions', { prompt => 5 }, keepalive => 1)->json->{error}{param}, 'prompt',
        "kept, error $n");
    is($c->get('/v1/nothing', keepalive => 1)->json->{error}{code}, 'unknown_url', "kept, 404 $n");
    is($c->get('/v1/models', keepalive => 1)->json->{object}, 'list', "kept, list $n");
}

my $many = long(100, 1000);
$c = $nginx->client;
$c->{socket}->blocking(1);
$c->request('POST', '/v1/completions', keepalive => 1, json => {
    prompt => 'tokens=' . ($_ % 5 + 1), ($_ % 2 ? (stream => \1) : ()) }) for 1 .. $many;
my @wrong = grep {
    my $r = $c->response;
    $r->status != 200 || $r->text ne join(' ', map { "t$_" } 0 .. $_ % 5) || !$r->complete
} 1 .. $many;
ok(!@wrong, "$many requests in one pipeline") or diag("@wrong");

$c = $nginx->client;
$c->write($c->request_bytes('POST', '/v1/completions', json => \%stream, keepalive => 1)
        . $c->request_bytes('POST', '/v1/nothing', json => \%whole, keepalive => 1)
        . $c->request_bytes('POST', '/v1/completions', json => { prompt => 'x', n => 0 }, keepalive => 1)
        . $c->request_bytes('POST', '/v1/completions', json => \%whole));
push @{ $c->{asked} }, ({ method => 'POST', time => time }) x 4;
stream_is('pipeline: a stream', $c->response);
is($c->response->json->{error}{code}, 'unknown_url', 'pipeline: an unknown URL with a body');
is($c->response->json->{error}{param}, 'n', 'pipeline: a bad request');
whole_is('pipeline: the last', $c->response);
ok($c->closed(2), 'pipeline: the end');

# requests that are none

for my $case ([ "GET /v1/models\r\n" => qr/\{"object":"list"/, 'HTTP/0.9' ],
    [ "POST /v1/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n" => qr/^HTTP\/1.1 400/, 'no Host' ],
    [ "POST /v1/completions HTTP/1.1\r\nHost: x/?\r\nContent-Length: 0\r\n\r\n" =>
        qr/^HTTP\/1.1 400/, 'a Host that is none' ],
    [ "POST /v1/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" => qr/^HTTP\/1.1 400/, 'two Hosts' ]) {
    my ($bytes, $want, $name) = @$case;
    my $c = $nginx->client;
    $c->write($bytes);
    1 while $c->fill(2);
    like($c->{in}, $want, $name);
}

# TLS

$c = LLM::Client->new(port => $tls, tls => 1);
whole_is('TLS', $c->post('/v1/completions', \%whole, keepalive => 1));
stream_is('TLS, stream', $c->post('/v1/completions', \%stream, keepalive => 1));
$r = $c->post('/v1/completions', { prompt => 'tokens=2000 size=500', stream => \1 }, keepalive => 1);
is(length $r->text, 1_000_000, 'TLS, a long stream');
ok($r->done, 'TLS, a long stream to its end');

# HTTP/2

my $h2 = LLM::HTTP2->new(port => $h2c);
my %ids = map { $h2->request('POST', '/v1/completions', json => { prompt => "tokens=$_ every=2",
    stream => \1 }) => $_ } 1 .. 30;
my @bad = grep {
    my $a = $h2->answer($_);
    my $said = join '', $a->{body} =~ /"text":"([^"]*)"/g;
    $a->{status} != 200 || !$a->{complete} || $said ne join ' ', map { "t$_" } 0 .. $ids{$_} - 1;
} sort { $a <=> $b } keys %ids;
ok(!@bad, 'HTTP/2: thirty streams at once') or diag("@bad");
my $id = $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=2000 size=500' });
is(length(($h2->answer($id)->{body} =~ /"text":"([^"]*)"/)[0]), 1_000_000, 'HTTP/2: a long answer');
is($h2->answer($h2->request('POST', '/v1/completions', json => { prompt => 1 }))->{status}, 400,
    'HTTP/2: an error');
is($h2->answer($h2->request('GET', '/v1/models'))->{status}, 200, 'HTTP/2: GET');
is($h2->answer($h2->request('PUT', '/v1/models', body => 'x' x 1000))->{status}, 405,
    'HTTP/2: a method with a body that nobody reads');
my $text = 'x' x 100_000;
is($h2->answer($h2->request('POST', '/v1/completions', json => { prompt => "answer=echo $text" }))
    ->{status}, 200, 'HTTP/2: a large body');
ok($h2->ping, 'HTTP/2: still there');
$h2->close;

# real clients

my @ask = ('-d', '{"prompt": "tokens=3", "stream": true}');
for my $case ([ 'curl, HTTP/1.1', '--http1.1', 'http://%%' ],
    [ 'curl, HTTP/1.0', '--http1.0', 'http://%%' ],
    [ 'curl, HTTP/2', '--http2-prior-knowledge', "http://127.0.0.1:$h2c" ],
    [ 'curl, HTTP/2 and TLS', '-k', '--http2', "https://127.0.0.1:$tls" ]) {
    my ($name, @arguments) = @$case;
    my $url = pop @arguments;
    my $out = $nginx->curl(@arguments, '-N', @ask, "$url/v1/completions");
    is($out->{exit}, 0, "$name: exit") or diag($out->{err});
    like($out->{out}, qr/"text":"t0".*" t2".*\ndata: \[DONE\]\n\n\z/s, "$name: stream");
}
SKIP: {
    my ($nghttp) = grep { -x } map { "$_/nghttp" } split /:/, $ENV{PATH};
    skip 'no nghttp', 1 if !$nghttp;
    my $body = $t->file('ask.json', '{"prompt": "tokens=3", "stream": true}');
    like(`nghttp -d $body -m 20 http://127.0.0.1:$h2c/v1/completions 2>/dev/null`,
        qr/(?:.*?" t2".*?\[DONE\]){20}/s, 'nghttp: twenty times at once');
}

$t->finish;
