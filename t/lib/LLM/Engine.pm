package LLM::Engine;

# An engine, fake or real, on a Unix socket of the test's directory (LLM::Test starts them).
#
#   $e->socket                     its path
#   $e->state                      hash: ready, draining, failed, running, queued, free_pages,
#                                  total_pages, beats, …: read from the engine's state memory
#   $e->redis                      hash: hit_tokens, loads, hits, saved, …, absent, late, …, breaker:
#                                  what the same memory says of the Redis tier
#   $e->idle($seconds)             waits until nothing runs, nothing is queued, all pages are free
#   $e->stop, $e->kill, $e->pid, $e->start (again, with the same socket)
#
# The fake engine only (t/fake/main.c and t/fake/script.h say what it understands):
#
#   $e->set('state=draining beat=off'), $e->script('every=20'), $e->drop
#   $e->counters                   hash: sessions, requests, submitted, cancelled, …

use strict;
use warnings;

use LLM::Process qw(slurp wait_until);
use Socket qw(AF_UNIX);

use constant SOCK_SEQPACKET => 5;

sub new {
    my ($class, %o) = @_;
    my $self = bless {%o}, $class;

    return $self;
}

sub start {
    my ($self) = @_;

    unlink $self->{socket};
    $self->{process} = LLM::Process->start($self->{argv}, log => $self->{log},
        env => $self->{env}, pipe => $self->{fake});
    delete $self->{killed};
    if ($self->{fake}) {
        my $line = readline($self->{process}{from}) // '';
        $line eq "ready\n" or die "fake-engine did not start: " . slurp($self->{log});
        return $self;
    }
    wait_until($self->{load_timeout} // 60,
        sub { !$self->{process}->alive_now || ($self->accepts && $self->state->{ready}) });
    $self->{process}->alive_now or die "llm-engine did not start: " . slurp($self->{log});
    $self->state->{ready} or die "llm-engine is not ready: " . slurp($self->{log});
    return $self;
}

sub accepts {
    my ($self) = @_;

    return -S $self->{socket};
}

sub socket { $_[0]{socket} }
sub pid { $_[0]{process}->pid }
sub alive { $_[0]{process}->alive_now }
sub log_text { slurp($_[0]{log}) }

sub signal {
    my ($self, $signal) = @_;

    $self->{process}->signal($signal);
}

# The wait status.
sub stop {
    my ($self) = @_;

    return $self->{process}->stop;
}

sub kill {
    my ($self) = @_;

    $self->{killed} = 1;
    return $self->{process}->kill;
}

# --- the state memory: offsets of struct llm_ipc_state in engine/ipc/abi.h ---

sub _state_file {
    my ($self) = @_;
    my $dir = '/proc/' . $self->pid . '/fd';

    for my $fd (glob "$dir/*") {
        my $target = readlink $fd // next;
        return $fd if $target =~ m{^/memfd:llm-state\b};
    }
    return undef;
}

sub state {
    my ($self) = @_;
    my $file = $self->_state_file // return {};
    my $bytes = '';

    open(my $f, '<:raw', $file) or return {};
    sysread($f, $bytes, 140) == 140 or return {};
    my ($flags, $beat_ns, $beats, $start_time) = unpack('x12 L Q Q Q', $bytes);
    my ($queued, $running, $queued_tokens, $free, $total, $prefill, $decode) =
        unpack('x64 L L Q L L L L', $bytes);
    my ($max_context, $vocab_size, $n_names) = unpack('x128 L L L', $bytes);
    return {
        ready => $flags & 1, draining => $flags >> 1 & 1, failed => $flags >> 2 & 1,
        beat_ns => $beat_ns, beats => $beats, start_time => $start_time, queued => $queued,
        running => $running, queued_tokens => $queued_tokens, free_pages => $free,
        total_pages => $total, prefill_rate => $prefill, decode_rate => $decode,
        max_context => $max_context, vocab_size => $vocab_size, n_names => $n_names,
    };
}

# struct llm_ipc_state.counters, by enum llm_ipc_counter and enum llm_ipc_redis_miss
my @redis = qw(loads hits saved there over_quota unsaved bytes_in bytes_out connects drops breaker
    first_ns bytes_per_s chosen declined probes);
my @misses = qw(absent late down refused protocol corrupt stale unwanted);

sub redis {
    my ($self) = @_;
    my @c = unpack('x2192 Q48', slurp($self->_state_file));

    return { hit_tokens => $c[2], (map { $redis[$_] => $c[16 + $_] } 0 .. $#redis),
        (map { $misses[$_] => $c[32 + $_] } 0 .. $#misses) };
}

sub idle {
    my ($self, $seconds) = @_;

    return wait_until($seconds // 5, sub {
        my $s = $self->state;
        return defined $s->{running} && $s->{running} == 0 && $s->{queued} == 0
            && $s->{free_pages} == $s->{total_pages};
    });
}

# --- the fake engine's commands ---

sub _obey {
    my ($self, $command) = @_;
    my $answer = $self->{process}->ask($command);

    $answer eq 'ok' or die "fake-engine: $command: $answer";
}

sub set { $_[0]->_obey("set $_[1]") }
sub script { $_[0]->_obey("script $_[1]") }
sub drop { $_[0]->_obey('drop') }

sub counters {
    my ($self) = @_;

    return { map { split /=/ } split / /, $self->{process}->ask('counters') };
}

1;
