#!/usr/bin/perl

# What llm_status_zone adds to a request, and what an answer of llm_status costs, in time of the
# worker's processor: make bench-status
#
# Two nginx with one worker each, one of them counting, get the same requests in turns, of tenants in
# turns: of a thousand, who all have their entries, or of more, who push each other out. The kernel
# says how long a worker has run.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my ($requests, $tenants) = ($ARGV[0] // 20_000, $ARGV[1] // 1000);
my $in_a_row = 500;

my $t = LLM::Test->new;
$t->fake_engine(script => 'tokens=1');
my %pass = (pass => 'llm_pass unix:%%SOCK%%; llm_tenant $http_x_tenant;',
    location => 'keepalive_requests 1000000;');
my %nginx = (plain => $t->nginx(%pass),
    counting => $t->nginx(%pass, http => 'llm_status_zone llm:1m;', server =>
        'location = /metrics { llm_status prometheus; } location = /status { llm_status json; }'));
my %worker = map { $_ => ($nginx{$_}->workers)[0] } keys %nginx;
my %client = map { $_ => $nginx{$_}->client } keys %nginx;
my %spent = map { $_ => [] } keys %nginx;

# Nanoseconds that a process has run.
sub ran {
    my ($pid) = @_;

    return (split ' ', slurp("/proc/$pid/schedstat"))[0];
}

sub ask {
    my ($which, $tenant) = @_;
    my $r = $client{$which}->post('/v1/completions', { prompt => 'x' }, keepalive => 1,
        headers => { 'X-Tenant' => "tenant-$tenant" });

    $r->status == 200 && $r->complete or die 'no answer: ' . $r->status;
}

sub block {
    my ($which, $first) = @_;
    my $before = ran($worker{$which});

    ask($which, ($first + $_) % $tenants) for 1 .. $in_a_row;
    return (ran($worker{$which}) - $before) / 1000 / $in_a_row;
}

sub median {
    my @sorted = sort { $a <=> $b } @_;

    return $sorted[ $#sorted / 2 ];
}

block($_, 0) for sort keys %nginx; # warm
my @more;
for (my $i = 0; $i < $requests; $i += $in_a_row) {
    my %us = map { $_ => block($_, $i) } sort keys %nginx;

    push @{ $spent{$_} }, $us{$_} for keys %us;
    push @more, $us{counting} - $us{plain};
}
printf "worker's time for a request, of %d each, in us\n", $requests;
printf "  %-36s%9.2f\n", $_, median(@{ $spent{$_} }) for qw(plain counting);
printf "  %-36s%9.2f\n", 'more, median of the blocks', median(@more);

for my $uri (qw(/metrics /status)) {
    my ($size, @us);

    for (1 .. 100) {
        my $before = ran($worker{counting});
        $size = length $nginx{counting}->get($uri)->body;
        push @us, (ran($worker{counting}) - $before) / 1000;
    }
    printf "%s, %d KB: %.0f us\n", $uri, $size / 1024, median(@us);
}

$t->finish;
