#!/usr/bin/perl

# What limits cost a worker: its CPU time for a request without and with them, in turns in the same
# run, with as many entries in each zone as a large site has; and how many entries a zone holds:
# make bench-limits
#
# The worker is an nginx with the module as it is, the engine a fake one, the client one connection
# that asks for one token at a time: the worker wakes up and sleeps anew for all that a request
# needs, which a busy one does not. A limit of tokens makes the engine wait for the worker once
# more: that it costs by itself is shown by a budget, which needs no zone.

use strict;
use warnings;

use lib 't/lib';
use LLM::Process qw(slurp);
use LLM::Test;

my ($requests, $entries) = ($ARGV[0] // 20_000, $ARGV[1] // 100_000);
my $in_a_row = 200;
my @locations = qw(none requests budget tokens both);

my $t = LLM::Test->new;
$t->fake_engine(script => 'tokens=1 prompt=10');
my $nginx = $t->nginx(
    http => <<'EOT',
        access_log off;
        keepalive_requests 10000000;
        llm_tenant $http_key;
        llm_limit_zone $llm_tenant zone=requests:20m rate=1000000r/m;
        llm_limit_zone $llm_tenant zone=tokens:20m rate=1000000t/m;
        llm_limit_zone $llm_tenant zone=small:1m rate=1r/m;
EOT
    server => join "\n", map { "location /$_->[0]/v1/ { llm_pass unix:%%SOCK%%; $_->[1] }" }
        [ none => '' ], [ requests => 'llm_limit zone=requests nodelay;' ],
        [ budget => 'llm_budget 1000;' ], [ tokens => 'llm_limit zone=tokens nodelay;' ],
        [ both => 'llm_limit zone=requests nodelay; llm_limit zone=tokens nodelay;' ],
        [ small => 'llm_limit zone=small nodelay;' ]);
my ($worker) = $nginx->workers;
my $client = $nginx->client(timeout => 60);

# So many requests of these keys, one after the other.
sub ask {
    my ($location, @keys) = @_;

    for my $key (@keys) {
        my $r = $client->post("/$location/v1/completions", { prompt => 'x', max_tokens => 5 },
            headers => { key => $key }, keepalive => 1);

        $r->status == 200 && length $r->body or die "no answer at /$location: " . $r->status;
    }
}

sub some { return map { 'key-' . int rand $entries } 1 .. $_[0] }

# Nanoseconds that the worker has run.
sub cpu {
    return (split ' ', slurp("/proc/$worker/schedstat"))[0];
}

# --- entries of a zone ---

my $tried = 12_000;
ask('small', map { "key-$_" } 1 .. $tried);
my $kept = grep {
    my $r = $client->get('/small/v1/models', headers => { key => "key-$_" }, keepalive => 1);
    $r->body;
    $r->header('x-ratelimit-remaining-requests') == 0;
} 1 .. $tried;
printf "%-44s%9d\n", 'entries of a zone of 1 MB', $kept;

# --- time ---

for (my $n = 0; $n < $entries; $n += 1000) {
    ask('both', map { "key-$_" } $n .. $n + 999);
}
my %ns = map { $_ => [] } @locations;
while (@{ $ns{none} } * $in_a_row < $requests) {
    for my $location (@locations) {
        my @keys = some($in_a_row);
        my $before = cpu();

        ask($location, @keys);
        push @{ $ns{$location} }, (cpu() - $before) / $in_a_row;
    }
}

# The median of the rows, in microseconds.
my %us = map { my @sorted = sort { $a <=> $b } @{ $ns{$_} }; $_ => $sorted[ @sorted / 2 ] / 1000 }
    @locations;
printf "\n%-44s%9s%9s\n", "worker CPU, $entries entries a zone", 'us', 'more';
printf "  %-42s%9.2f%9.2f\n", $_->[1], $us{ $_->[0] }, $us{ $_->[0] } - $us{none} for
    [ none => 'no limit' ], [ requests => 'one of requests' ],
    [ budget => 'a budget: the engine waits, no zone' ], [ tokens => 'one of tokens' ],
    [ both => 'both' ];
printf "  %-42s%9s%9.2f\n", 'zones and headers of both alone', '', $us{both} - $us{budget};

$t->finish;
