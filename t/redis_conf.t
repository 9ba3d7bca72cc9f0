#!/usr/bin/perl

# conf/redis.conf in a real redis-server: its user may do what an engine does, and nothing else; a
# full one makes room. And the harness's own Redis and relay.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::UNIX;
use LLM::Test;

my $t = LLM::Test->new;
my $redis = $t->redis(maxmemory => '16mb');

# The words that an engine's user says to the server, and what it answers.
sub as_user {
    my ($path, @commands) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $path) or die "$path: $!";
    my @said;

    for my $words (@commands) {
        print $socket join(' ', @$words), "\r\n";
        my $line = readline($socket) // 'nothing';
        push @said, $line =~ s/\r\n\z//r;
        readline $socket for $line =~ /^\$\d/ ? 1 : ();
        if ($line =~ /^\*2/) { # of SCAN: a cursor, then names
            readline $socket for 1 .. 2;
            my ($n) = readline($socket) =~ /(\d+)/;
            readline $socket for 1 .. 2 * $n;
        }
    }
    return wantarray ? @said : $said[-1];
}

sub said { return scalar as_user($redis->{socket}, [qw(AUTH llm-engine change-me)], [@_]) }

is(said(qw(SET llm1:x 1 EX 100 NX)), '+OK', 'SET');
is(said(qw(SET llm1:x 1 EX 100 NX)), '$-1', 'SET what is there');
is(said(qw(EXPIRE llm1:x 50)), ':1', 'EXPIRE');
is(said(qw(EXPIRE llm1:y 50)), ':0', 'EXPIRE of what is not there');
is(said(qw(INCRBY llm1:n 7)), ':7', 'INCRBY');
is(said(qw(GET llm1:n)), '$1', 'GET');
is(said(qw(SCAN 0 MATCH llm1:* COUNT 10)), '*2', 'SCAN');
is(said(qw(DEL llm1:x llm1:n)), ':2', 'DEL');

like(said(@$_), qr/^-NOPERM/, "not: @$_") for [qw(GET other)], [qw(SET other 1)],
    [qw(DEL llm1:x other)], [qw(KEYS *)], ['FLUSHALL'], [qw(CONFIG GET *)], [qw(EVAL return 0)],
    [qw(STRLEN llm1:x)], [qw(SAVE)], [qw(DEBUG SLEEP 0)], [qw(ACL LIST)], [qw(SUBSCRIBE c)];
like(scalar as_user($redis->{socket}, [qw(GET llm1:x)]), qr/^-NOAUTH/, 'not without a password');
like(scalar as_user($redis->{socket}, [qw(AUTH llm-engine wrong)]), qr/^-WRONGPASS/,
    'nor with a wrong one');
like(scalar as_user($redis->{socket}, [qw(AUTH change-me)]), qr/^-WRONGPASS/,
    'nor the default user with ours');

is(sprintf('%o', (stat $redis->{socket})[2] & 07777), '770', 'the socket is its group\'s');
is_deeply([ map { $redis->command('CONFIG', 'GET', $_)->[1] } qw(save appendonly) ], [ '', 'no' ],
    'nothing is written to a disk');

my $mega = 'x' x (1 << 20);
$redis->command('SET', "llm1:$_", $mega) for 1 .. 40;
my $left = () = $redis->names('llm1:*');
cmp_ok($left, '>', 4, 'of forty values of 1 MB some are there');
cmp_ok($left, '<', 17, 'and none that does not fit');
$redis->command('DEL', $redis->names('llm1:*'));

# --- the relay ---

my $relay = $t->relay($redis);
$redis->command('SET', 'llm1:a', 'one');
$redis->command('SET', 'llm1:n', 1);

# GET and INCRBY through it, their replies as they come within a second.
sub through {
    my ($words) = @_;
    $relay->set($words);
    my $socket = IO::Socket::UNIX->new(Peer => $relay->{socket}) or die "relay: $!";
    my $got = '';

    print $socket "*3\r\n\$4\r\nAUTH\r\n\$10\r\nllm-engine\r\n\$9\r\nchange-me\r\n",
        "*2\r\n\$3\r\nGET\r\n\$6\r\nllm1:a\r\n",
        "*3\r\n\$6\r\nINCRBY\r\n\$6\r\nllm1:n\r\n\$1\r\n0\r\n";
    my $until = time + 1;
    $socket->blocking(0);
    while ($got !~ /:1\r\n.*:1\r\n|\A\+OK.*:1\r\n\z/s && time < $until) {
        my $n = sysread $socket, $got, 4096, length $got;
        last if defined $n && $n == 0;
        sleep 0.002;
    }
    return $got =~ s/\r\n/|/gr;
}

my $honest = '+OK|$3|one|:1|';
is(through(''), $honest, 'it relays');
my $from = time;
is(through('delay=100'), $honest, 'late');
cmp_ok(time - $from, '>=', 0.1, 'by what was said');
is(through('silent'), '', 'silent');
is(through('refuse'), '', 'hangs up');
is(through('cut=9'), '+OK|$3|', 'hangs up in the middle');
is(through('error=LOADING_for_now'), '-LOADING for now|' x 3, 'errors');
is(through('before=3e30'), ">0$honest", 'something before');
is(through('swap'), '$3|one|+OK|', 'in another order: the third waits for a fourth');
like(through('twice'), qr/^\+OK\|\+OK\|\$3\|one\|\$3\|one\|:1\|/, 'twice');
isnt(through('flip=3'), $honest, 'with bits flipped');
$from = time;
is(through('rate=60'), $honest, 'slowly');
cmp_ok(time - $from, '>=', 0.2, 'twenty bytes at sixty a second');
cmp_ok($relay->counters->{commands}, '>=', 24, 'it counts');

$redis->signal('STOP');
is(through(''), '', 'a server that stands still');
$redis->signal('CONT');
is(through(''), $honest, 'and goes on');
$redis->stop;
is(through(''), '', 'that is gone');
$redis->start;
is(through(''), '+OK|$-1|:0|', 'and comes again, with nothing');

$t->finish;
