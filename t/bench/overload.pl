#!/usr/bin/perl

# More requests than the engine can answer: how much of its best it still does, how long those wait
# that it takes, and how fast the others hear that it does not: make bench-overload
#
# The demo model behind nginx, on one thread, so that the client and nginx have a processor of their
# own, with latent memory for twelve requests and a queue of four: what an engine takes at once is
# what those who are admitted wait for. Its rate is what it answers while a fixed number of clients
# ask again and again. Then requests come by chance (Poisson) at that rate, at twice and at ten times
# it, whatever becomes of those before them.

use strict;
use warnings;

use lib 't/lib';
use IO::Select;
use JSON::PP qw(encode_json);
use LLM::Test;

my $seconds = $ARGV[0] // 20;
my ($PROMPT, $ANSWER) = (88, 32); # tokens: two pages
my $QUEUE = 4;    # requests that may wait
my $AT_ONCE = 12; # clients that ask for its best: as many as there is memory for

my $t = LLM::Test->new;
alarm 0; # this takes as long as it takes
srand(7);

my $engine = $t->engine(args => [ '--threads', '1', '--latent-memory', '16m',
    '--max-queue-requests', $QUEUE, '--max-tenant-queue-requests', $QUEUE ]);
my $nginx = $t->nginx(location => 'llm_limit_log_level info; access_log off;');
my $client = $nginx->client;

sub bytes {
    return $client->request_bytes('POST', '/v1/completions', body => encode_json({
        prompt => [ map { 300 + int rand 3000 } 1 .. $PROMPT ], max_tokens => $ANSWER,
        ignore_eos => \1, stream => \1 }));
}

# Requests come at the times that next(number in flight, status of the last to end) tells, undef:
# not now; what became of each.
sub drive {
    my ($next) = @_;
    my $select = IO::Select->new;
    my (%open, @done);
    my $bytes = bytes(); # made ahead: it takes time
    my $at = $next->(0);

    while (defined $at || %open) {
        my $wait = defined $at ? $at - time : 1;

        if (defined $at && $wait <= 0) {
            my $asked = time;
            my $c = $nginx->client;
            $c->write($bytes);
            $open{ $c->{socket} } = { c => $c, asked => $asked, late => $asked - $at, in => '' };
            $select->add($c->{socket});
            $bytes = bytes();
            $at = $next->(scalar keys %open);
            next;
        }
        for my $socket ($select->can_read($wait)) {
            my $s = $open{$socket};
            my $n = sysread($socket, $s->{in}, 65536, length $s->{in});
            my $now = time;

            $s->{head} //= $now;
            $s->{first} //= $now if $s->{in} =~ /^data: /m;
            next if $n;
            $select->remove($socket);
            delete $open{$socket};
            ($s->{status}) = $s->{in} =~ m{^HTTP/1\.1 (\d+)};
            $s->{whole} = $s->{in} =~ /^data: \[DONE\]/m;
            $s->{last} = $now;
            delete @$s{qw(c in)};
            push @done, $s;
            $at = $next->(scalar keys %open, $s->{status}) if !defined $at;
        }
    }
    return @done;
}

# So many at once, all the time; who is refused waits a little.
sub closed {
    my ($clients) = @_;
    my $end = time + $seconds;

    return drive(sub {
        my ($open, $status) = @_;

        return if time >= $end || $open >= $clients;
        return time + (($status // 200) == 200 ? 0 : 0.02);
    });
}

# By chance, so many a second.
sub open_loop {
    my ($rate) = @_;
    my $at = time;
    my $end = $at + $seconds;

    return drive(sub { $at += -log(1 - rand) / $rate; return $at < $end ? $at : undef });
}

sub percentile {
    my ($percent, @values) = @_;
    my @sorted = sort { $a <=> $b } @values;

    return @sorted ? $sorted[ $#sorted * $percent / 100 ] : 0;
}

# Answers a second from the first request to the end of the last answer within the time.
sub goodput {
    my ($begin, @seen) = @_;

    return (grep { $_->{whole} && $_->{last} <= $begin + $seconds } @seen) / $seconds;
}

sub run {
    my ($what, $do) = @_;
    my $begin = time;
    my @seen = $do->();
    my @admitted = grep { $_->{whole} } @seen;
    my @refused = grep { ($_->{status} // 0) == 503 || ($_->{status} // 0) == 429 } @seen;
    my $lost = @seen - @admitted - @refused;
    my %r = (goodput => goodput($begin, @seen),
        first => percentile(99, map { 1000 * ($_->{first} - $_->{asked}) } @admitted),
        refusal => percentile(99, map { 1000 * ($_->{last} - $_->{asked}) } @refused));

    printf "%-16s%8d%8d%8d%8d%10.1f%10.1f%10.1f%10.1f%10.2f%10.2f\n", $what, scalar @seen,
        scalar @admitted, scalar @refused, $lost, $r{goodput},
        percentile(50, map { 1000 * ($_->{first} - $_->{asked}) } @admitted), $r{first},
        percentile(50, map { 1000 * ($_->{last} - $_->{asked}) } @refused), $r{refusal},
        percentile(99, map { 1000 * $_->{late} } @seen);
    return \%r;
}

closed($AT_ONCE) for 1; # it learns its rates
printf "%-16s%8s%8s%8s%8s%10s%10s%10s%10s%10s%10s\n", '', 'asked', 'answered', 'refused', 'other',
    'a second', 'first p50', 'p99 ms', 'no p50', 'p99 ms', 'late p99';
my $best = run("$AT_ONCE at once", sub { closed($AT_ONCE) });
my %at = map { my $times = $_;
    $times => run("$times times", sub { open_loop($times * $best->{goodput}) }) } 1, 2, 10;

my ($peak) = sort { $b <=> $a } map { $_->{goodput} } $best, values %at;
for my $times (2, 10) {
    printf "%2d times: %.1f %% of the most that it did, first token p99 %.2f times that at 1, refusals %.1f ms\n",
        $times, 100 * $at{$times}{goodput} / $peak, $at{$times}{first} / $at{1}{first},
        $at{$times}{refusal};
}

$t->finish;
