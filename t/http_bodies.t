#!/usr/bin/perl

# Ways a body arrives: in memory, in a file, in chunks, slowly, too large, not at all.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::INET;
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(script => 'answer=echo');
my $nginx = $t->nginx(
    main => 'thread_pool default threads=2;',
    http => 'client_body_timeout 500ms; lingering_timeout 500ms;',
    server => <<'EOT',
        listen 127.0.0.1:%%PORT2%% http2;
        client_max_body_size 8m;
        client_body_buffer_size 8k;
        llm_max_tokens 1000000;
        location /file/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_body_in_file_only clean;
        }
        location /small/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_max_body_size 1000;
        }
        location /huge/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_max_body_size 64m;
        }
        location /memory/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_body_buffer_size 8m;
        }
        location /page/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_max_body_size 1000;
            error_page 413 /too_large;
        }
        location = /too_large { return 200 "a page of its own"; }
        location /elsewhere/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; client_max_body_size 1000;
            llm_intercept_errors on; error_page 408 413 @silent;
        }
        location @silent {
            proxy_pass http://127.0.0.1:%%PORT3%%; proxy_pass_request_body off;
            proxy_ignore_client_abort on; proxy_read_timeout 1s;
        }
        location /late/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; llm_intercept_errors on; error_page 408 /late;
        }
        location = /late { return 200 "late"; }
EOT
);

sub words {
    my ($n) = @_;

    return join ' ', map { "w$_" } 1 .. $n;
}

sub body_of {
    my ($text) = @_;

    return qq({"prompt": "$text"});
}

# Says no more than where two long texts part.
sub same {
    my ($got, $want, $name) = @_;

    ok(($got // '') eq $want, $name)
        or diag(length($got // ''), ' bytes, not ', length $want);
}

# In memory, in a file, in both, parsed at once or in a thread: the text arrives as it was.

for my $n (1, 100, 1000, 1100, 1200, 2000, 10_000, 100_000) {
    my $text = words($n);

    for my $where ('', '/file', '/memory') {
        same($nginx->post("$where/v1/completions", undef, body => body_of($text))->text, $text,
            "$n words, location $where/v1/");
    }
    my @chunks = unpack '(a5000)*', body_of($text);
    same($nginx->post('/v1/completions', undef, chunked => \@chunks)->text, $text,
        "$n words in chunks");
}
my $ids = '{"prompt": [' . join(',', 1 .. 25_000) . '], "logit_bias": {"5": 1}}';
is($nginx->post('/memory/v1/completions', undef, body => $ids)->status, 200,
    'many numbers are parsed in a thread');
same($nginx->post('/v1/completions', undef, chunked => [ split //, body_of(words(500)) ])->text,
    words(500), 'chunks of one byte');

# in pieces

my $c = $nginx->client;
$c->write_slowly($c->request_bytes('POST', '/v1/completions', body => body_of(words(30))), 50, 0.01);
is($c->response->text, words(30), 'a body in pieces');

# Expect

$c = $nginx->client;
my $head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n";
my $body = body_of('a b');
$c->write("${head}Content-Length: " . length($body) . "\r\n\r\n");
ok($c->fill(5) && $c->{in} =~ s/\AHTTP\/1.1 100 Continue\r\n\r\n//, '100 Continue');
$c->write($body);
is($c->response->text, 'a b', 'and then the body');
$c = $nginx->client;
$c->write($head =~ s{/v1/completions}{/v1/nothing}r . "Content-Length: 10\r\n\r\n");
is($c->response->status, 404, 'no 100 where the body is not wanted');

# too large

sub too_large {
    my ($name, $r) = @_;

    is($r->status, 413, "$name: 413");
    is($r->header('Content-Type'), 'application/json', "$name: JSON");
    my $e = ($r->json // {})->{error};
    is($e->{message}, 'The request body is too large', "$name: message");
    is($e->{type}, 'invalid_request_error', "$name: type");
    like($r->header('x-request-id'), qr/^req_/, "$name: x-request-id");
}

my $fits = 'x' x (1000 - length body_of(''));
is($nginx->post('/small/v1/completions', undef, body => body_of($fits))->status, 200, 'the limit');
too_large('one more', $nginx->post('/small/v1/completions', undef, body => body_of("x$fits")));
too_large('said to be large', do {
    my $c = $nginx->client;
    $c->write("POST /small/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n{");
    $c->response;
});
too_large('one chunk', $nginx->post('/small/v1/completions', undef, chunked => [ 'x' x 1001 ]));
too_large('chunk after chunk', do {
    my $c = $nginx->client;
    $c->write("POST /small/v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    $c->write(sprintf "%x\r\n%s\r\n", 300, 'x' x 300), sleep 0.02 for 1 .. 4;
    $c->response;
});
is($nginx->post('/page/v1/completions', undef, body => 'x' x 1001)->body, 'a page of its own',
    'an error_page comes first');
my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', ReuseAddr => 1,
    LocalPort => $nginx->{ports}{3}) or die "listen: $!";
$c = $nginx->client;
$c->write("POST /elsewhere/v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
sleep 0.05;
$c->write(sprintf "%x\r\n%s\r\n", 600, 'x' x 600), sleep 0.05 for 1 .. 4;
is($c->response->status, 504, 'what still comes is nobody\'s when an error_page has taken over');
my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
my $id = $h2->request('POST', '/small/v1/completions', body => 'x' x 1001);
is($h2->answer($id)->{status}, 413, 'HTTP/2: 413');
like($h2->answer($id)->{body}, qr/^\{"error":\{"message":"The request body is too large"/,
    'HTTP/2: JSON');
is($h2->answer($h2->request('POST', '/v1/completions', body => body_of('h 2')))->{status}, 200,
    'HTTP/2: the connection goes on');
$h2->close;

# malformed

for my $bad ("zz\r\n", "fffffffffffffffff\r\n", "-1\r\n") {
    my $c = $nginx->client;
    $c->write("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n$bad");
    my $r = $c->response;
    is($r->status, 400, 'a broken chunk');
    is(($r->json // {})->{error}{message}, 'Bad request', 'a broken chunk: JSON');
}
for my $headers ("Content-Length: -1\r\n", "Content-Length: 9223372036854775808\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") {
    my $c = $nginx->client;
    $c->write("POST /v1/completions HTTP/1.1\r\nHost: x\r\n$headers\r\n0\r\n\r\n");
    is($c->response->status, 400, 'a broken length');
}
for my $encoding (qw(gzip zstd br)) {
    my $r = $nginx->client->post('/v1/completions', { prompt => 'x' },
        headers => { 'Content-Encoding' => $encoding });
    is($r->status, 415, "$encoding is not decoded");
    is($r->json->{error}{type}, 'invalid_request_error', "$encoding: type");
}
is($nginx->client->post('/v1/completions', { prompt => 'x' },
    headers => { 'Content-Encoding' => 'identity' })->status, 200, 'no encoding by name');

# too slow

for my $start ("Content-Length: 100\r\n\r\n{\"prompt\"", "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    "Content-Length: 100\r\n\r\n") {
    my $c = $nginx->client;
    $c->write("POST /v1/completions HTTP/1.1\r\nHost: x\r\n$start");
    my $r = $c->response;
    is($r->status, 408, 'too slow: 408');
    is(($r->json // {})->{error}{message}, 'The request body did not arrive in time',
        'too slow: JSON');
    like($r->header('Connection'), qr/close/, 'too slow: the connection ends');
    ok($c->closed(5), 'and did');
}
$c = $nginx->client;
$c->write("POST /late/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
is($c->response->body, 'late', 'too slow: an error_page');
$h2 = LLM::HTTP2->new(port => $nginx->{ports}{2}, window => 0);
my $submitted = $engine->counters->{submitted};
# nginx would refuse what overflows its buffer, after an answer has begun
for my $late ([ '/v1/completions', '"x"}', 'the rest' ],
    [ '/small/v1/completions', 'x' x 10_000, 'too much' ]) {
    my ($uri, $rest, $name) = @$late;
    my $id = $h2->request('POST', $uri, body => '{"prompt":', end => 0);
    wait_until(5, sub { $h2->ping; $h2->{streams}{$id}{status} });
    $h2->data($id, $rest, 1);
    ok($h2->ping, "HTTP/2: $name comes after a 408");
    $h2->window($id, 1000);
    is($h2->answer($id)->{status}, 408, "HTTP/2, $name: 408");
    like($h2->answer($id)->{body}, qr/did not arrive in time/, "HTTP/2, $name: JSON");
    ok($h2->answer($id)->{complete}, "HTTP/2, $name: complete");
}
is($engine->counters->{submitted}, $submitted, 'HTTP/2: what comes after a 408 is dropped');
$h2->close;

# the engine's own limit

my $r = $nginx->post('/memory/v1/completions', undef, body => body_of('x' x 5_000_000));
is($r->status, 413, 'more than half the arena');

$c = $nginx->client;
$c->write("POST /huge/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n");
is($c->response->status, 413, 'so much more that it is not read');

# gone while a thread parses

for (1 .. long(20, 200)) {
    my $c = $nginx->client;
    $c->request('POST', '/memory/v1/completions', body => $ids);
    $_ % 2 ? $c->close : $c->reset;
}
is($nginx->post('/v1/completions', undef, body => body_of('still here'))->text, 'still here',
    'clients that leave while a thread parses');
is($nginx->workers, 1, 'one worker, the same');

$t->finish;
