#!/usr/bin/perl

# The demo model through nginx and the engine, as a client sees it: first token, tokens a second of
# one stream and of 64, and the first token after a prefix of 2,000 tokens that is cold, in memory,
# or in Redis: make bench-demo, on a GPU with LLM_DEVICE=cuda.

use strict;
use warnings;

use lib 't/lib';
use IO::Select;
use JSON::PP qw(encode_json);
use LLM::Test;

my $runs = $ARGV[0] // 30;
my ($PREFIX, $TAIL) = (2000, 40); # tokens
my $STREAMS = 64;

my $t = LLM::Test->new;
my $redis = $t->redis(maxmemory => '2gb');
my @args = ('--latent-memory', '1g', '--redis', $redis->url, '--secret-file', $t->secret);

alarm 0; # this takes as long as it takes
srand(3);

# An engine and an nginx before it.
sub node {
    my $engine = $t->engine(args => \@args);

    return { engine => $engine, nginx => $t->nginx(engine => $engine) };
}

sub ids { map { 300 + int rand 3000 } 1 .. shift }

# Sends a request for a stream; the client.
sub send_request {
    my ($node, $prompt, $tokens) = @_;
    my $client = $node->{nginx}->client(timeout => 60);
    my $body = encode_json({
        prompt => $prompt, max_tokens => $tokens, ignore_eos => \1, temperature => 1,
        stream => \1, stream_options => { include_usage => \1 } });

    $client->request('POST', '/v1/completions', body => $body);
    return $client;
}

# Reads streams to their ends: when each was asked for, when its first and its last token came, and
# how many tokens there were, all and cached. What they say is looked at when all is there: that
# takes longer than making it.
sub read_streams {
    my %left = map { $_->{socket} => { client => $_ } } @_;
    my $select = IO::Select->new(map { $_->{socket} } @_);
    my @seen;

    while (my @ready = $select->can_read(60)) {
        for my $socket (@ready) {
            my $s = $left{$socket};
            my $in = \$s->{client}{in};
            my $n = sysread($socket, $$in, 65536, length $$in);

            next if !defined $n;
            $select->remove($socket) if $n == 0;
            $s->{last} = time if $n > 0;
            $s->{first} //= time if $$in =~ /^data: /m;
        }
    }
    for my $s (map { $left{ $_->{socket} } } @_) {
        my $r = $s->{client}->response;

        $r->status == 200 && $r->usage or die 'broken off: ' . $r->status;
        push @seen, { %$s, asked => $r->{times}{asked}, tokens => $r->usage->{completion_tokens},
            cached => $r->usage->{prompt_tokens_details}{cached_tokens} };
        $s->{client}->close;
    }
    return @seen;
}

sub ask { return (read_streams(send_request(@_)))[0] }

sub first_ms {
    my ($seen) = @_;

    return 1000 * ($seen->{first} - $seen->{asked});
}

sub rate {
    my ($seen) = @_;

    return ($seen->{tokens} - 1) / ($seen->{last} - $seen->{first});
}

sub report {
    my ($what, $unit, @values) = @_;
    my @sorted = sort { $a <=> $b } @values;

    printf "%-52s %9.2f %-6s %9.2f … %.2f\n", $what, $sorted[ @sorted / 2 ], $unit,
        @sorted[ 0, -1 ];
}

my ($node, $other) = (node(), node());

# what has been captured and loaded on the way to the first token of each length is not counted
for my $warm ($node, $other) {
    ask($warm, [ ids($_) ], 40) for (24, $TAIL, $PREFIX + $TAIL) x 2;
}
{
    read_streams(map { send_request($node, [ ids(24) ], 40) } 1 .. $STREAMS);
}

my @one = map { ask($node, [ ids(24) ], 300) } 1 .. $runs;
report('first token, 24 tokens of prompt', 'ms', map { first_ms($_) } @one);
report('one stream of 300 tokens', 'tok/s', map { rate($_) } @one);

my (@all, @firsts);
for (1 .. ($runs + 4) / 5) {
    my $begin = time;
    my @seen = read_streams(map { send_request($node, [ ids(24) ], 300) } 1 .. $STREAMS);
    my ($tokens, $last) = (0, 0);

    for my $s (@seen) {
        $tokens += $s->{tokens};
        $last = $s->{last} if $s->{last} > $last;
    }
    push @all, $tokens / ($last - $begin);
    push @firsts, map { first_ms($_) } @seen;
}
report("$STREAMS streams of 300 tokens together", 'tok/s', @all);
report('  their first tokens', 'ms', @firsts);

my (%ms, $cached);
for (1 .. $runs) {
    my @prefix = ids($PREFIX);
    my $saved = $node->{engine}->redis->{saved};

    push @{ $ms{alone} }, first_ms(ask($node, [ ids($TAIL + $PREFIX % 64) ], 1));
    push @{ $ms{cold} }, first_ms(ask($node, [ @prefix, ids($TAIL) ], 1));
    my $hit = ask($node, [ @prefix, ids($TAIL) ], 1);
    push @{ $ms{memory} }, first_ms($hit);
    $cached = $hit->{cached};
    wait_until(10, sub { $node->{engine}->redis->{saved} >= $saved + int($PREFIX / 64) })
        or die 'the prefix is not saved';
    my $hits = $other->{engine}->redis->{hits};
    my $loaded = first_ms(ask($other, [ @prefix, ids($TAIL) ], 1));
    push @{ $ms{ $other->{engine}->redis->{hits} > $hits ? 'redis' : 'computed' } }, $loaded;
}
printf "a prefix of %u tokens, %u of them in full pages, and %u more\n", $PREFIX, $cached, $TAIL;
report('  first token: what is not cached, alone', 'ms', @{ $ms{alone} });
report('  cold', 'ms', @{ $ms{cold} });
report('  in memory', 'ms', @{ $ms{memory} });
report('  in Redis, loaded', 'ms', @{ $ms{redis} }) if $ms{redis};
report('  in Redis, not loaded: computing is faster', 'ms', @{ $ms{computed} }) if $ms{computed};

$t->finish;
