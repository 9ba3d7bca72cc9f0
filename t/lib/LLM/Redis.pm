package LLM::Redis;

# A redis-server of the test's own, on a Unix socket and a port of its directory, as conf/redis.conf
# has it; and a relay before it that does what a bad server or network would (LLM::Test starts
# both).
#
#   my $redis = $t->redis(maxmemory => '64mb');     # more of redis.conf's directives
#   $t->engine(args => [ '--redis', $redis->url, … ])
#   $redis->tcp_url                # the same over TCP
#   $redis->command('GET', $key)   # as an administrator; an error reply is an LLM::Redis::Error
#   $redis->send(…), $redis->receive   # the two halves of a command
#   $redis->names('llm1:*')        # of all keys, by SCAN; $redis->pages of those that are pages
#   $redis->stop, $redis->kill, $redis->start, $redis->signal('STOP')
#
#   my $relay = $t->relay($redis);
#   $relay->url                    # what an engine is told in the place of the server's
#   $relay->set('delay=50')        # t/lib/redis_relay says what it understands
#   $relay->counters               # hash: connections, commands, bytes

use strict;
use warnings;

use IO::Socket::INET;
use IO::Socket::UNIX;
use LLM::Process qw(slurp wait_until);

my ($user, $password) = qw(llm-engine change-me);

sub new {
    my ($class, %o) = @_;

    return bless {%o}, $class;
}

sub start {
    my ($self) = @_;
    my %more = %{ $self->{conf} // {} };

    unlink $self->{socket};
    $self->{process} = LLM::Process->start([
        'redis-server', 'conf/redis.conf', '--port', $self->{port}, '--bind', '127.0.0.1',
        '--unixsocket', $self->{socket}, '--dir', $self->{dir}, '--enable-debug-command', 'yes',
        '--user', 'test', 'on', 'nopass', '~*', '&*', '+@all',
        map { ("--$_", $more{$_}) } sort keys %more
    ], log => $self->{log});
    wait_until(10, sub { !$self->{process}->alive_now || eval { $self->command('PING') } });
    $self->{process}->alive_now or die 'redis-server did not start: ' . slurp($self->{log});
    return $self;
}

sub url { my $path = $_[0]{socket}; return "redis+unix://$user:$password\@$path" }
sub tcp_url { return "redis://$user:$password\@127.0.0.1:$_[0]{port}" }
sub pid { $_[0]{process}->pid }
sub signal { $_[0]{process}->signal($_[1]) }

sub _hang_up { delete $_[0]{connection} }

sub stop {
    my ($self) = @_;

    $self->_hang_up;
    return $self->{process}->stop;
}

sub kill {
    my ($self) = @_;

    $self->_hang_up;
    return $self->{process}->kill;
}

# --- a client: one command, one reply ---

sub _connect {
    my ($self) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $self->{socket}) // die "$self->{socket}: $!\n";

    $self->{connection} = $socket;
    $self->_ask('AUTH', 'test', 'any');
    $self->_reply;
}

sub _reply {
    my ($self) = @_;
    my $line = readline($self->{connection}) // die "redis-server has hung up\n";
    $line =~ s/\r\n\z// or die "half a line\n";
    my ($type, $rest) = (substr($line, 0, 1), substr $line, 1);

    return $rest if $type eq '+' || $type eq ':';
    return bless \$rest, 'LLM::Redis::Error' if $type eq '-';
    if ($type eq '$') {
        return undef if $rest < 0;
        read($self->{connection}, my $bytes, $rest + 2) == $rest + 2 or die "half a value\n";
        return substr $bytes, 0, $rest;
    }
    $type eq '*' or die "what is $line?\n";
    return [ map { $self->_reply } 1 .. $rest ];
}

sub _ask {
    my ($self, @words) = @_;

    $self->{connection}->print('*' . @words . "\r\n",
        map { '$' . length($_) . "\r\n$_\r\n" } @words);
    $self->{connection}->flush;
}

# The two halves of a command, for one that takes its time.
sub send {
    my ($self, @words) = @_;

    $self->_connect if !$self->{connection};
    $self->_ask(@words);
}

sub receive {
    my ($self) = @_;
    my $reply = eval { [ $self->_reply ] };

    return $reply->[0] if $reply;
    $self->_hang_up;
    die $@;
}

sub command {
    my ($self, @words) = @_;

    $self->send(@words);
    return $self->receive;
}

sub names {
    my ($self, $pattern) = @_;
    my ($cursor, %found) = (0);

    do {
        my $reply = $self->command('SCAN', $cursor, 'MATCH', $pattern // '*', 'COUNT', 1000);
        $cursor = $reply->[0];
        $found{$_} = 1 for @{ $reply->[1] };
    } while ($cursor ne '0');
    return sort keys %found;
}

# Those of pages: the engine's other keys are numbers.
sub pages {
    my ($self, $tag) = @_;
    $tag //= '*';

    return grep { /:[0-9a-f]{64}\z/ } $self->names("llm1:$tag:*");
}

package LLM::Redis::Relay;

use LLM::Process;

sub new {
    my ($class, %o) = @_;
    my $self = bless {%o}, $class;

    $self->{process} = LLM::Process->start(
        [ $^X, 't/lib/redis_relay', $self->{socket}, $self->{redis}{socket} ],
        log => $self->{log}, pipe => 1);
    my $line = readline($self->{process}{from}) // '';
    $line eq "ready\n" or die 'redis_relay did not start';
    return $self;
}

sub url { my $path = $_[0]{socket}; return "redis+unix://$user:$password\@$path" }

sub set {
    my ($self, $words) = @_;
    my $answer = $self->{process}->ask("set $words");

    $answer eq 'ok' or die "redis_relay: $words: $answer";
}

sub counters { return { map { split /=/ } split / /, $_[0]{process}->ask('counters') } }

1;
