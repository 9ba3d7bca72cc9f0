#!/usr/bin/perl

# The demo model through nginx and the engine, as a client sees it: first token, tokens a second of
# one stream and of 64, and the first token after a prefix of 2,000 tokens that is cold, in memory,
# or in Redis: make bench-demo, on a GPU with LLM_DEVICE=cuda.

use strict;
use warnings;

use lib 't/lib';
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

    $client->request('POST', '/v1/completions', json => {
        prompt => $prompt, max_tokens => $tokens, ignore_eos => \1, temperature => 1,
        stream => \1, stream_options => { include_usage => \1 } });
    return $client;
}

# Reads a stream to its end: when it was asked for, when its first and its last token came, and how
# many tokens there were, all and cached.
sub read_stream {
    my ($client) = @_;
    my $r = $client->response;
    my %seen = (asked => $r->{times}{asked});

    $r->status == 200 or die 'no answer: ' . $r->status;
    while (my $e = $r->event) {
        my $choice = ($e->{json} // {})->{choices} // [];

        $seen{last} = $e->{time} if @$choice;
        $seen{first} //= $e->{time} if @$choice;
    }
    $r->usage or die "broken off: " . $r->{stream_error}{message};
    $seen{tokens} = $r->usage->{completion_tokens};
    $seen{cached} = $r->usage->{prompt_tokens_details}{cached_tokens};
    $client->close;
    return \%seen;
}

sub ask { return read_stream(send_request(@_)) }

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
    my @clients = map { send_request($node, [ ids(24) ], 40) } 1 .. $STREAMS;
    read_stream($_) for @clients;
}

my @one = map { ask($node, [ ids(24) ], 300) } 1 .. $runs;
report('first token, 24 tokens of prompt', 'ms', map { first_ms($_) } @one);
report('one stream of 300 tokens', 'tok/s', map { rate($_) } @one);

my (@all, @firsts);
for (1 .. ($runs + 4) / 5) {
    my $begin = time;
    my @seen = map { read_stream($_) } map { send_request($node, [ ids(24) ], 300) } 1 .. $STREAMS;
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
