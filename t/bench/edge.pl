#!/usr/bin/perl

# The round trip of a request through a session, worker -> fake engine -> worker, beside that of a
# bare eventfd between two processes, in turns in the same run: make bench-edge
#
# The worker is an nginx with the module as it is. It takes its own times, which log variables show
# and a header brings here: $llm_first_token_time goes from before the SUBMIT is written into shared
# memory until its first TOKEN has been read from there. So it holds both wake-ups, both rings,
# epoll_wait on either side, what the worker does after a SUBMIT before it sleeps, and what the fake
# engine needs to read the request and to answer it; not the client.
#
# What sleeps wakes up slower the longer it has slept. An engine has slept since the request before,
# so its like is the eventfd that is asked once after each request; one that is asked many times in
# a row is the floor.
#
# Waking up another core costs more than a switch on the same one, and the kernel does not place
# both pairs alike: `taskset -c 1 make bench-edge` has everything on one core.

use strict;
use warnings;

use lib 't/lib';
use LLM::Process;
use LLM::Test;

my ($requests) = (@ARGV, 10_000);
my $in_a_row = 500; # bare round trips, after as many requests

my $t = LLM::Test->new;
$t->fake_engine(script => 'tokens=1');
my $nginx = $t->nginx(
    location => 'add_header X-Time $llm_first_token_time; keepalive_requests 1000000;');
my $client = $nginx->client;
my $eventfd = LLM::Process->start([ "$t->{build}/bench/eventfd" ], log => $t->dir . '/eventfd.log',
    pipe => 1);

# The worker's time for one request on a connection that stays, in microseconds.
sub ask {
    my $r = $client->post('/v1/completions', { prompt => 'x' }, keepalive => 1);

    $r->status == 200 && $r->text eq 't0' or die 'no answer: ' . $r->status;
    return 1e6 * $r->header('X-Time');
}

# So many bare round trips.
sub bare {
    my ($n) = @_;

    return map { $_ / 1000 } split ' ', $eventfd->ask($n);
}

sub percentile {
    my ($sorted, $percent) = @_;

    return $sorted->[ $#$sorted * $percent / 100 ];
}

my (@row, @paused, @trip);
ask(), bare(1) for 1 .. $in_a_row; # warm
while (@trip < $requests) {
    for (1 .. $in_a_row) {
        push @trip, ask();
        push @paused, bare(1);
    }
    push @row, bare($in_a_row);
}
$eventfd->stop;

my %us = (row => \@row, paused => \@paused, trip => \@trip);
my %at = map { my $sorted = [ sort { $a <=> $b } @{ $us{$_} } ];
    $_ => [ map { percentile($sorted, $_) } 50, 99 ] } keys %us;

printf "%-38s%9s%9s\n", 'round trip, ' . @trip . ' of each', 'p50 us', 'p99 us';
printf "  %-36s%9.1f%9.1f\n", @$_ for
    [ 'bare eventfd, in a row', @{ $at{row} } ],
    [ 'bare eventfd, between requests', @{ $at{paused} } ],
    [ 'worker, fake engine, worker', @{ $at{trip} } ],
    [ 'more than the bare one in a row', map { $at{trip}[$_] - $at{row}[$_] } 0, 1 ],
    [ 'more than the bare one in between', map { $at{trip}[$_] - $at{paused}[$_] } 0, 1 ];

$t->finish;
