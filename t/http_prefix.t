#!/usr/bin/perl

# $llm_prefix: requests of one tenant that begin alike go to the same node, whatever else is in
# them and however their bodies arrive.

use strict;
use warnings;

use lib 't/lib';
use Digest::SHA qw(sha256 sha256_hex);
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my $nginx = $t->nginx(
    http => <<'EOT',
        client_max_body_size 8m;
        upstream nodes {
            hash $llm_prefix consistent;
            server 127.0.0.1:%%PORT4%%;
            server 127.0.0.1:%%PORT5%%;
        }
        upstream spread {
            hash $key consistent;
            server 127.0.0.1:%%PORT4%%;
            server 127.0.0.1:%%PORT5%%;
        }
        upstream full { server 127.0.0.1:%%PORT6%%; }
        map $http_x_early $early { default ""; "yes" $llm_prefix; }
        map $llm_prefix $key { "" $request_id; default $llm_prefix; }
        server {
            listen 127.0.0.1:%%PORT2%%;
            listen 127.0.0.1:%%PORT3%% http2;
            location / {
                llm_tenant $http_x_tenant;
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
                set $seen "<$early>";
                proxy_set_header X-Early $seen;
            }
            location /public/ {
                llm_tenant $http_x_tenant;
                llm_cache_scope public;
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
            }
            location /nobody/ {
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
            }
            location /file/ {
                client_body_in_file_only on;
                llm_tenant $http_x_tenant;
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
            }
            location /unbuffered/ {
                proxy_request_buffering off;
                llm_tenant $http_x_tenant;
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
            }
            location /again/ {
                llm_tenant first;
                error_page 503 = @again;
                proxy_set_header X-Prefix "<$llm_prefix>";
                proxy_pass http://full;
                proxy_intercept_errors on;
            }
            location @again {
                llm_tenant second;
                proxy_pass http://nodes;
                proxy_set_header X-Prefix "<$llm_prefix>";
            }
            location /spread/ { llm_tenant $http_x_tenant; proxy_pass http://spread; }
            location /unread/ { return 200 "<$llm_prefix>"; }
        }
        server {
            listen 127.0.0.1:%%PORT4%%;
            listen 127.0.0.1:%%PORT5%%;
            location / {
                add_header X-Node $server_port;
                add_header X-Prefix $http_x_prefix;
                add_header X-Early $http_x_early;
                return 200 $http_x_prefix;
            }
        }
        server { listen 127.0.0.1:%%PORT6%%; return 503; }
EOT
    location => "add_header X-Prefix <\$llm_prefix>;");
my ($front, $front_h2) = @{ $nginx->{ports} }{2, 3};

# The definition once more (engine/ipc/prefix.h).
sub prefix {
    my ($tenant, $text) = @_;

    utf8::encode($text) if utf8::is_utf8($text);
    return '<' . substr(sha256_hex(sha256($tenant) . sha256($text)), 0, 32) . '>';
}

sub chat {
    my ($system, $user) = @_;

    return { model => 'm', messages => [ map({ role => 'system', content => $_ }, $system // ()),
        { role => 'user', content => $user // 'x' } ] };
}

# The prefix and the node that the request came to.
sub ask {
    my ($body, %o) = @_;
    my $client = LLM::Client->new(port => $front);

    $body = JSON::PP->new->utf8->canonical->encode($body) if ref $body;
    $client->request('POST', $o{uri} // '/v1/chat/completions',
        ($o{pieces} ? (chunked => [ unpack "(a$o{pieces})*", $body ]) : (body => $body)),
        headers => { 'X-Tenant' => $o{tenant} // 'a', %{ $o{headers} // {} } });
    my $r = $client->response;
    is($r->status, 200, 'an answer') or diag($r->body);
    return ($r->header('X-Prefix'), $r->header('X-Node'), $r->header('X-Early'));
}

# the same text, the same node; another text or tenant, another prefix

my ($first, $node) = ask(chat('You are a poet.', 'one'));
is($first, prefix('a', 'You are a poet.'), 'the digest of tenant and text');
is_deeply([ ask(chat('You are a poet.', "n$_")) ], [ $first, $node, '<>' ], 'another question')
    for 1 .. 5;
is((ask(chat('You are a poet.'), tenant => 'b'))[0], prefix('b', 'You are a poet.'),
    'another tenant');
is((ask(chat('You are a clerk.')))[0], prefix('a', 'You are a clerk.'), 'another text');
my %nodes = map { (ask(chat('You are a poet.'), tenant => "t$_"))[1] => 1 } 1 .. 20;
is(scalar keys %nodes, 2, 'tenants spread over the nodes');
is((ask(chat("caf\x{e9} \x{1f600}\n")))[0], prefix('a', "caf\x{e9} \x{1f600}\n"), 'not only ASCII');
is((ask({ messages => [ { role => 'developer', content => 'a' },
    { role => 'system', content => [ { type => 'text', text => 'b' } ] },
    { role => 'user', content => 'c' }, { role => 'system', content => 'd' } ] }))[0],
    prefix('a', 'ab'), 'all that leads');

# completions

is((ask({ prompt => 'p' x 2000 }))[0], prefix('a', 'p' x 1024), 'a prompt');
is((ask({ prompt => [ 'p', 'q' ] }))[0], prefix('a', 'p'), 'the first of two');
is((ask({ prompt => [ 1 .. 300 ] }))[0], prefix('a', pack('V*', 1 .. 256)), 'ids');

# however it arrives

my $large = chat('You are a poet.', 'x' x 1_000_000);
is_deeply([ ask($large) ], [ $first, $node, '<>' ], 'a megabyte in a file');
is_deeply([ ask($large, pieces => 50_000) ], [ $first, $node, '<>' ], 'in chunks');
is((ask(chat('You are a poet.'), pieces => 7))[0], $first, 'in small chunks');
is((ask(chat('You are a poet.'), uri => '/file/v1/x'))[0], $first, 'a small one in a file');
is((ask('{"messages":[{"role":"system","content":"' . 's' x 1_000_000 . '"}]}'))[0],
    prefix('a', 's' x 65536), 'a megabyte of system text');
is((ask('{"messages":[{"content":"' . 's' x 1_000_000 . '","role":"system"}]}'))[0], '<>',
    'which is not known to be that so soon');
is((ask(chat('You are a poet.', 'x' x 5_000_000)))[0], $first, 'five, of which the first bytes count');
for my $case ([ 524_289, '<>' ], [ 524_288, prefix('a', 'y') ]) {
    my $body = '{"x":"%s","prompt":"y"';

    is((ask(sprintf $body, 'x' x ($case->[0] + 2 - length $body)))[0], $case->[1],
        "what it says in $case->[0] bytes");
}
my $h2 = LLM::HTTP2->new(port => $front_h2);
my $poet = JSON::PP->new->encode(chat('You are a poet.'));
for my $uri ('/v1/chat/completions', '/file/v1/chat/completions') {
    for my $headers ({}, { 'content-length' => length $poet }) {
        my $id = $h2->request('POST', $uri, body => $poet, headers => { 'x-tenant' => 'a', %$headers });
        is($h2->answer($id)->{body}, $first, "HTTP/2, $uri" . (%$headers ? ', of a known length' : ''));
    }
}
$h2->close;

# what is none

for my $case ([ 'no JSON', 'hello' ], [ 'broken JSON', '{"messages": [{"role": "system"' ],
    [ 'no object', '[1]' ], [ 'no request', '{"a": 1}' ], [ 'no body', '' ], [ 'a form', 'a=b&c=d' ],
    [ 'no system message', chat() ], [ 'an empty one', chat('') ]) {
    is((ask($case->[1]))[0], '<>', $case->[0]);
}
my $unbuffered = LLM::Client->new(port => $front);
$unbuffered->write("POST /unbuffered/v1/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        . "Content-Length: 15\r\n\r\n{\"prompt\":\"x\"}");
sleep 0.2;
$unbuffered->write("\n");
is($unbuffered->response->body, '<>', 'proxy_request_buffering off');
is(LLM::Client->new(port => $front)->post('/unread/', chat('x'))->body, '<>', 'an unread body');
is_deeply([ ask(chat('You are a poet.'), headers => { 'X-Early' => 'yes' }) ], [ $first, $node, '<>' ],
    'asked for too early, it is asked for again');

for my $body ('hello', chat()) {
    %nodes = map { (ask($body, uri => '/spread/v1/x'))[1] => 1 } 1 .. 20;
    is(scalar keys %nodes, 2, 'by a map they spread');
}
%nodes = map { (ask(chat('You are a poet.', $_), uri => '/spread/v1/x'))[1] => 1 } 1 .. 20;
is(scalar keys %nodes, 1, 'and the others do not');

# whose it is

is((ask(chat('x'), uri => '/nobody/v1/x'))[0], prefix('', 'x'), 'no tenant');
is((ask(chat('x'), uri => '/public/v1/x', tenant => $_))[0], prefix('*public*', 'x'),
    'llm_cache_scope public: everybody') for qw(a b);

is((ask(chat('x'), uri => '/again/v1/x'))[0], prefix('second', 'x'), 'another location, another tenant');

# where it is served

my $served = $nginx->post('/v1/chat/completions', { %{ chat('You are a poet.') }, model => 'fake' });
is($served->status, 200, 'served');
is($served->header('X-Prefix'), prefix('test', 'You are a poet.'), 'in a serving location');

$t->finish;
