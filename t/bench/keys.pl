#!/usr/bin/perl

# What a large key file costs, and whether time tells a key that is there from one that is not:
# make bench-keys
#
#   load     CPU time of nginx -t with a file of a million keys, beside one with a single key
#   look-up  the worker's CPU time for a request, by llm_keys, beside that by llm_tenant, and with a
#            file of few keys: the keys that are asked for are spread over the whole file
#   telling  the same for keys that the file does not have and for such that it has as expired,
#            which are both a 401, in batches that take turns at random. A look-up that ends early
#            where nothing is found would show as a difference of their means; chance alone makes
#            one of more than three standard errors in one run of 370
#
#   revoking the time from the reload (HUP) that takes a key away to the end of the last of its
#            streams, some of which are of a worker that is older than the last one
#
# Requests are pipelined on one connection, so that CPU time is theirs; it is taken from the kernel,
# in nanoseconds.

use strict;
use warnings;

use lib 't/lib';
use Digest::SHA qw(sha256_hex);
use LLM::Key;
use LLM::Test;
use List::Util qw(shuffle sum);

my $n_keys = $ARGV[0] // 1_000_000;
my $rounds = $ARGV[1] // 400;
my $batch = 200;
my $shown = 10_000; # keys of each kind

alarm 0; # it takes as long as it takes
srand(7);

my $t = LLM::Test->new;
$t->fake_engine;

my %keys = map {
    my ($kind, $settings) = @$_;
    $kind => [ map { LLM::Key->new(id => "$kind$_", tenant => "tenant$_", settings => $settings) }
            1 .. $shown ];
} [ good => '' ], [ expired => 'expires=2020-01-01' ], [ unknown => '' ];

sub write_keys {
    my ($name, $n, @known) = @_;

    open(my $f, '>', $t->dir . "/$name.keys") or die $!;
    print $f map { $_->line } @known;
    for my $i (@known + 1 .. $n) {
        print $f "key-$i ", unpack('H*', pack 'L8', map { rand 2**32 } 1 .. 8), ' tenant',
            $i % 5000, "\n";
    }
    close $f or die $!;
}

write_keys('few', 1, $keys{good}[0]);
write_keys('all', $n_keys, @{ $keys{good} }, @{ $keys{expired} });

my %location = map { $_ => "location /$_/v1/ { llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/$_.keys; }" }
    qw(few all);
my $set = 'keepalive_requests 1000000000; access_log off;';

sub load_time {
    my ($file) = @_;
    my $nginx = $t->nginx_new(http => $set, server => $location{$file});
    my $start = sum((times)[ 2, 3 ]);

    $nginx->test or die 'nginx -t';
    return sum((times)[ 2, 3 ]) - $start;
}

my @few = map { load_time('few') } 1 .. 3;
my @all = map { load_time('all') } 1 .. 3;
my $loaded = (sort { $a <=> $b } @all)[1] - (sort { $a <=> $b } @few)[1];

my $nginx = $t->nginx(http => $set, server => "$location{few} $location{all}"
    . 'location /tenant/v1/ { llm_pass unix:%%SOCK%%; llm_tenant $http_x_tenant; }');
my ($worker) = $nginx->workers;
wait_until(30, sub { $nginx->get('/tenant/v1/models', headers => { 'X-Tenant' => 't' })->status
    == 200 }) or die 'no engine';
my $client = $nginx->client(timeout => 60);

sub rss {
    my ($kb) = slurp("/proc/$worker/status") =~ /^VmRSS:\s+(\d+)/m;

    return $kb;
}

sub cpu_ns { (split ' ', slurp("/proc/$worker/schedstat"))[0] }

# Nanoseconds of the worker's CPU time for a request, over a batch of them.
sub cost {
    my ($uri, $status, @headers) = @_;
    my $bytes = join '', map { "GET /$uri/v1/models/none HTTP/1.1\r\nHost: x\r\n$_\r\n\r\n" } @headers;
    my $before = cpu_ns();

    $client->write($bytes) or die 'write';
    for (@headers) {
        push @{ $client->{asked} }, { method => 'GET', time => 0 };
        my $r = $client->response;
        $r->status == $status or die "$uri: " . $r->status . ', not ' . $status;
        $r->body;
    }
    return (cpu_ns() - $before) / @headers;
}

sub header { 'Authorization: Bearer ' . $_[0]->text }

sub some { map { header($keys{ $_[0] }[ rand $shown ]) } 1 .. $batch }

my %kinds = (
    tenant => sub { cost('tenant', 404, map { header($keys{good}[ rand $shown ]) . "\r\nX-Tenant: t" }
        1 .. $batch) },
    few => sub { cost('few', 404, (header($keys{good}[0])) x $batch) },
    good => sub { cost('all', 404, some('good')) },
    expired => sub { cost('all', 401, some('expired')) },
    unknown => sub { cost('all', 401, some('unknown')) },
);
my %ns;

$kinds{$_}->() for (sort keys %kinds) x 5; # warm
for (1 .. $rounds) {
    push @{ $ns{$_} }, $kinds{$_}->() for shuffle sort keys %kinds;
}

# Without the tenth of the batches that were disturbed most.
sub stat_of {
    my @x = sort { $a <=> $b } @_;

    @x = @x[ 0 .. 0.9 * $#x ];
    my $mean = sum(@x) / @x;
    my $var = sum(map { ($_ - $mean)**2 } @x) / (@x - 1);
    return ($mean, sqrt($var / @x));
}

my %stat = map { $_ => [ stat_of(@{ $ns{$_} }) ] } keys %ns;

printf "%d keys: %.1f s of CPU time to load, %.0f MB a worker's memory in all\n", $n_keys, $loaded, rss() / 1024;
printf "%-46s%8s%8s\n", "CPU time of a request, $rounds x $batch of each", 'us', '+-';
printf "  %-44s%8.2f%8.2f\n", $_->[0], map { $_ / 1000 } @{ $stat{ $_->[1] } }
    for [ 'by llm_tenant', 'tenant' ], [ 'by llm_keys, one key in the file', 'few' ],
    [ 'by llm_keys, all in the file', 'good' ], [ 'an expired key', 'expired' ],
    [ 'an unknown key', 'unknown' ];
printf "  %-44s%8.2f\n", 'a key, more than a tenant by name',
    ($stat{good}[0] - $stat{tenant}[0]) / 1000;
my $difference = $stat{unknown}[0] - $stat{expired}[0];
my $error = sqrt($stat{unknown}[1]**2 + $stat{expired}[1]**2);
printf "  %-44s%8.3f%8.3f\n", 'an unknown one, more than an expired one', $difference / 1000,
    $error / 1000;
printf "  %-44s%8.1f\n", 'in standard errors', $difference / $error;

# --- revoking ---

my @revoked;
my ($gone, $stays) = @{ $keys{good} }[ 0, 1 ];
write_keys('few', 2, $gone, $stays);
$nginx = $t->nginx(http => 'lingering_timeout 100ms;', server => $location{few});

# From a worker that knows the key: the one before may still take a connection.
sub stream {
    while (1) {
        my $c = $nginx->client(timeout => 60);

        $c->request('POST', '/few/v1/completions', headers => $gone->bearer,
            json => { prompt => 'tokens=6000 every=10', stream => \1 });
        my $r = $c->response;
        return $r if $r->status == 200 && $r->event;
    }
}

for (1 .. 20) {
    wait_until(10, sub { $nginx->get('/few/v1/models', headers => $gone->bearer)->status == 200 })
        or die 'no engine';
    my @streams = map { stream() } 1 .. 20;
    $nginx->reload;
    sleep 0.5;
    push @streams, map { stream() } 1 .. 20;
    write_keys('few', 1, $stays);
    my $start = time;
    $nginx->reload;
    $_->api_error or die 'not ended' for @streams;
    push @revoked, time - $start;
    write_keys('few', 2, $gone, $stays);
    $nginx->reload;
}
@revoked = sort { $a <=> $b } @revoked;
printf "%-46s%8.3f%8.3f s\n", 'reload to the end of the last stream, p50, max', @revoked[ 10, -1 ];

$t->finish;
