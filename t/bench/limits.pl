#!/usr/bin/perl

# What limits cost a worker: its CPU time for a request without and with them, in turns in the same
# run, with as many entries in each zone as a large site has; and how many entries a zone holds:
# make bench-limits
#
# The worker is an nginx with the module as it is, the engine a fake one; the clients are some
# connections that ask at the same time, each for one token. A limit of tokens has the engine wait
# until the worker tells it to go on: what that costs by itself is shown by a budget, which needs no
# zone. (With a real engine it is less: there the count of a prompt and its first token come apart,
# and wake the worker twice, whether there is a limit or not.)

use strict;
use warnings;

use lib 't/lib';
use LLM::Process qw(slurp);
use LLM::Test;

my ($requests, $entries) = ($ARGV[0] // 30_000, $ARGV[1] // 100_000);
my $in_a_row = 320;
my $at_once = 32;
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
my @clients = map { $nginx->client(timeout => 60) } 1 .. $at_once;

# Requests of these keys.
sub ask {
    my ($location, @keys) = @_;

    while (my @some = splice @keys, 0, $at_once) {
        $clients[$_]->request('POST', "/$location/v1/completions",
            json => { prompt => 'x', max_tokens => 5 }, headers => { key => $some[$_] },
            keepalive => 1)
            for 0 .. $#some;
        for my $client (@clients[ 0 .. $#some ]) {
            my $r = $client->response;

            $r->status == 200 && length $r->body or die "no answer at /$location: " . $r->status;
        }
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
    my $r = $clients[0]->get('/small/v1/models', headers => { key => "key-$_" }, keepalive => 1);
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
