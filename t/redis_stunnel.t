#!/usr/bin/perl

# Redis on another host: what doc/redis.md says of stunnel, line by line, but for the paths, the
# ports and the users.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::INET;
use LLM::Test;

plan skip_all => 'stunnel (Debian: stunnel4) is not installed'
    if !grep { -x "$_/stunnel" } split /:/, $ENV{PATH};

my $t = LLM::Test->new;
srand(41);
my $dir = $t->dir;
my $redis = $t->redis;

# The doc's indented lines.
my @blocks = map { s/^    //mgr } slurp('doc/redis.md') =~ /((?:^    .*\n)+)/mg;
my ($server) = grep { /^accept = 6390$/m } @blocks;
my ($client) = grep { /^client = yes$/m } @blocks;
my ($commands) = grep { /^openssl/ } @blocks;
ok($server && $client && $commands, 'there are lines for both sides, and for a certificate');

# One side, with these places in the place of the doc's; all of these are there to be replaced.
sub stunnel {
    my ($name, $lines, %place) = @_;

    $lines =~ s/^set[ug]id = \w+\n//mg;
    for my $what (keys %place) {
        $lines =~ s/\Q$what\E$/$place{$what}/m or die "no $what";
    }
    return LLM::Process->start([ 'stunnel', $t->file("$name.conf", $lines) ],
        log => "$dir/$name.log");
}

sub listens {
    my ($port) = @_;

    return wait_until(10, sub { IO::Socket::INET->new("127.0.0.1:$port") });
}

$commands =~ s{/etc/stunnel/}{};
is(system('sh', '-c', "cd '$dir' && {\n$commands} 2>openssl.log"), 0, 'a certificate is made')
    or diag(slurp("$dir/openssl.log"));
is(sprintf('%o', (stat "$dir/redis.pem")[2] & 0777), '600', 'for nobody else to read');

my ($far, $near) = ($t->port, $t->port);
my $beside_redis = stunnel('server', $server, 6390 => $far,
    '/run/redis-llm/redis.sock' => $redis->{socket}, '/etc/stunnel/redis.pem' => "$dir/redis.pem");
my %near = ('127.0.0.1:6380' => "127.0.0.1:$near", 'redis.example:6390' => "localhost:$far");
my @client = ('client', $client, %near, '/etc/stunnel/redis.crt' => "$dir/redis.crt");
my $beside_engine = stunnel(@client);
ok(listens($far) && listens($near), 'both listen')
    or diag(slurp("$dir/server.log"), slurp("$dir/client.log"));

my $plain = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$far", Timeout => 5);
print $plain "PING\r\n";
unlike(readline($plain) // '', qr/PONG|NOAUTH/, 'who speaks no TLS does not reach Redis');

# --- engines ---

my $url = "redis://llm-engine:change-me\@127.0.0.1:$near";
my @prompt = map { 300 + int rand 3000 } 1 .. 600;

sub node {
    my (@args) = @_;
    my $engine = $t->engine(args => [ '--max-context', '1024', '--latent-memory', '16m', @args ]);

    return { engine => $engine, nginx => $t->nginx(engine => $engine) };
}

sub ask {
    my ($node, $prompt) = @_;
    my $r = $node->{nginx}->post('/v1/completions', { prompt => $prompt // \@prompt,
        max_tokens => 8, temperature => 0, ignore_eos => \1 }, timeout => 60);

    return $r->status == 200 ? $r->text : 'status ' . $r->status;
}

sub counts { return $_[0]{engine}->redis }

# It needs a moment to connect.
sub connected {
    my ($node) = @_;

    return wait_until(20, sub { counts($node)->{connects} >= 2 });
}

my @redis = ('--redis', $url, '--secret-file', $t->secret);
my $want = ask(node());
my ($one, $two) = map { node(@redis) } 1, 2;
ok(connected($one), 'an engine connects');
is(ask($one), $want, 'and answers');
ok(wait_until(20, sub { counts($one)->{saved} >= 9 }), 'its pages are saved')
    or diag(explain(counts($one)));
ok(connected($two) && ask($two) eq $want, 'another one answers the same');
cmp_ok(counts($two)->{hits}, '>', 0, 'with pages of the first one');

# --- a server that is another ---

$beside_engine->stop;
system("cd '$dir' && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9"
    . ' -subj /CN=redis.example -addext subjectAltName=DNS:redis.example -keyout /dev/null'
    . ' -out other.crt 2>>openssl.log');
for my $case ([ 'another certificate', '/etc/stunnel/redis.crt' => "$dir/other.crt" ],
    [ 'another name', 'redis.example' => 'redis2.example' ]) {
    my ($name, @place) = @$case;
    my $wrong = stunnel(@client, @place);

    ok(listens($near), "$name: stunnel listens");
    my $node = node(@redis);
    is(ask($node), $want, "$name: the engine answers");
    is(counts($node)->{connects}, 0, "$name: and has no Redis");
    $node->{engine}->stop;
    $wrong->stop;
}

# --- stunnel comes and goes ---

is(ask($two), $want, 'without stunnel an engine answers');
my ($before, $connects) = @{ counts($two) }{qw(hits connects)};
$beside_engine = stunnel(@client);
my @next = map { 300 + int rand 3000 } 1 .. 600;
ok(wait_until(30, sub { connected($one); ask($one, \@next); counts($one)->{saved} >= 18 }),
    'when it is back pages are saved again');
ok(wait_until(30, sub { counts($two)->{connects} >= $connects + 2 }), 'the other one is back, too');
ask($two, \@next);
cmp_ok(counts($two)->{hits}, '>', $before, 'and finds them');

$_->stop for $beside_engine, $beside_redis;
$t->finish;
