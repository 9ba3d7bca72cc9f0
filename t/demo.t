#!/usr/bin/perl

# make demo, from the built programs on: tools/demo start and stop.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::INET;
use LLM::Client;
use LLM::Test;

my $t = LLM::Test->new;
plan skip_all => 'nginx comes without the sanitizers here' if $t->{sanitize};

# A build directory that is not the one a developer's own demo runs in.
sub build_directory {
    my ($path) = @_;

    system('mkdir', '-p', $path) == 0 or die;
    symlink("$t->{build}/$_", "$path/$_") for qw(llm-engine ngx_http_llm_module.so);
    return $path;
}

# The wait status and the output.
sub demo {
    my $log = $t->dir . '/demo.log';

    unlink $log;
    my $status = LLM::Process->start([ 'tools/demo', @_ ], log => $log)->wait(120);
    return ($status, slurp($log));
}

sub socket_directories {
    return join ' ', sort glob('/tmp/llm-demo.*');
}

my $before = socket_directories();
my $build = build_directory($t->dir . '/a b');
my $port = $t->port;

my ($status, $said) = demo('start', $build, $port);
is($status, 0, 'demo') or diag($said);
like($said, qr/\$ curl .*stream.*?\n\n\S.*\n\nThe demo model answers at/s, 'asks and shows the answer');
like($said, qr{curl http://127\.0\.0\.1:$port/v1/chat/completions}, 'says how to talk to it');
like($said, qr/make demo-stop/, 'and how to stop it');

my $r = LLM::Client->new(port => $port)->post('/v1/chat/completions',
    { model => 'demo', temperature => 0, messages => [ { role => 'user', content => 'Hello' } ] });
is($r->text, 'Hello! How can I help you today?', 'it goes on answering');
is(LLM::Client->new(port => $port)->get('/health')->status, 200, 'health');

my $pid = slurp("$build/demo/engine.pid");
($status, $said) = demo('start', $build, $port);
is($status, 0, 'demo while one runs') or diag($said);
isnt(slurp("$build/demo/engine.pid"), $pid, 'starts it again');

# the engine takes a socket's path of 99 bytes
my $long = $t->dir . '/';
$long = build_directory($long . 'x' x (100 - length "$long/demo/llm.sock"));
($status, $said) = demo('start', $long, $port);
is($status >> 8, 1, 'a taken port');
like($said, qr/port $port is taken.*PORT=/, 'is said so');

is((demo('stop', $build))[0], 0, 'demo-stop');
ok(!IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port"), 'nothing listens any more');
is((demo('stop', $build))[0], 0, 'demo-stop without a demo');

($status, $said) = demo('start', $long, $port);
is($status, 0, 'a path too long for a socket') or diag($said);
isnt(socket_directories(), $before, 'gives it a directory below /tmp');
is((demo('stop', $long))[0], 0, 'demo-stop');
is(socket_directories(), $before, 'the directory of its socket is gone');

is((demo('start', $build, $_))[0] >> 8, 1, "PORT=$_") for ('0', 'x', '65536');

$t->finish;
