package LLM::Faults;

# What may be wrong with a Redis, or with the way to it: by name, to be begun and ended while an
# engine uses it through a relay.
#
#   my $faults = LLM::Faults->new($redis, $relay);
#   for my $name ($faults->names) {
#       $faults->begin($name);
#       …
#       $faults->end($name);
#   }

use strict;
use warnings;

sub bytes { return 'before=' . unpack 'H*', $_[0] }

# Of the relay: what it is set to.
my %relay = (
    'hangs up' => 'refuse',
    'silent' => 'silent',
    'slow to answer' => 'delay=50',
    'slow' => 'rate=20000',
    'a byte at a time' => 'rate=10',
    'cut off in a reply' => 'cut=1000',
    'cut off in a value' => 'cut=30000',
    'bits flipped' => 'flip=2000',
    'replies in another order' => 'swap',
    'every reply twice' => 'twice',
    'LOADING' => 'error=LOADING_Redis_is_loading_the_dataset_in_memory',
    'READONLY' => 'error=READONLY_You_can\'t_write_against_a_read_only_replica.',
    'MOVED' => 'error=MOVED_3999_127.0.0.1:6381',
    'ASK' => 'error=ASK_3999_127.0.0.1:6381',
    'NOAUTH' => 'error=NOAUTH_Authentication_required.',
    'OOM' => 'error=OOM_command_not_allowed_when_used_memory_>_\'maxmemory\'.',
    'an answer too many' => bytes("+OK\r\n"),
    'a string of a TiB' => bytes("\$1099511627776\r\n"),
    'an array of 10^9' => bytes("*1000000000\r\n"),
    'arrays in arrays' => bytes('*1' . "\r\n*1" x 1000 . "\r\n"),
    'a push' => bytes(">2\r\n+message\r\n+x\r\n"),
    'arrays in the place of pages' => 'pages=' . unpack('H*', "*1000000000\r\n"),
    'an error without end' => bytes('-' . 'x' x 100_000),
);

# Of the server: how it begins, how it ends.
my %server = (
    'stands still' => [ sub { $_[0]->signal('STOP') }, sub { $_[0]->signal('CONT') } ],
    'is gone' => [ sub { $_[0]->kill }, sub { $_[0]->start } ],
    'has just come again' => [ sub { $_[0]->kill; $_[0]->start }, sub { } ],
    'is flushed' => [ sub { $_[0]->command('FLUSHALL') }, sub { } ],
    'is paused' => [ sub { $_[0]->command(qw(CLIENT PAUSE 1000 ALL)) },
        sub { $_[0]->command(qw(CLIENT UNPAUSE)) } ],
    'sleeps' => [ sub { $_[0]->send(qw(DEBUG SLEEP 1)) }, sub { $_[0]->receive } ],
    'is full' => [ sub { $_[0]->command(qw(CONFIG SET maxmemory 3mb)) },
        sub { $_[0]->command(qw(CONFIG SET maxmemory 512mb)) } ],
    'is full and evicts nothing' =>
        [ sub { $_[0]->command(qw(CONFIG SET maxmemory-policy noeviction maxmemory 2mb)) },
        sub { $_[0]->command(qw(CONFIG SET maxmemory-policy allkeys-lfu maxmemory 512mb)) } ],
    'allows no GET' => [ sub { $_[0]->command(qw(ACL SETUSER llm-engine -get)) },
        sub { $_[0]->command(qw(ACL SETUSER llm-engine +get)) } ],
    'allows no SET' => [ sub { $_[0]->command(qw(ACL SETUSER llm-engine -set)) },
        sub { $_[0]->command(qw(ACL SETUSER llm-engine +set)) } ],
    'has another password' =>
        [ sub { $_[0]->command(qw(ACL SETUSER llm-engine resetpass >other));
            $_[0]->command(qw(CLIENT KILL USER llm-engine)) },
        sub { $_[0]->command(qw(ACL SETUSER llm-engine resetpass >change-me)) } ],
    'kills its clients' => [ sub { $_[0]->command(qw(CLIENT KILL USER llm-engine)) }, sub { } ],
    'has other values' =>
        [ sub { my $redis = $_[0];
            $redis->command('SETRANGE', $_, 200, 'x' x 100) for $redis->pages }, sub { } ],
);

sub new {
    my ($class, $redis, $relay) = @_;

    return bless { redis => $redis, relay => $relay }, $class;
}

sub names { return sort keys %relay, keys %server }

sub begin {
    my ($self, $name) = @_;

    return $server{$name}[0]->($self->{redis}) if $server{$name};
    # those that are connected have their beginning behind them
    $self->{redis}->command(qw(CLIENT KILL USER llm-engine)) if $relay{$name} =~ /^before/;
    $self->{relay}->set($relay{$name});
}

sub end {
    my ($self, $name) = @_;

    return $server{$name}[1]->($self->{redis}) if $server{$name};
    $self->{relay}->set('');
}

1;
