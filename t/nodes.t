#!/usr/bin/perl

# conf/nodes.conf: an nginx in front of two nodes that share a Redis. What begins alike is on one
# node, and when that is gone the other one finds it in Redis.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;
use MIME::Base64 qw(encode_base64);

my $t = LLM::Test->new;
my $redis = $t->redis(maxmemory => '512mb');
my @nodes = map { node() } 0, 1;

sub node {
    my $engine = $t->engine(args => [ '--max-context', '2048', '--latent-memory', '64m',
        '--deterministic', '--redis', $redis->url, '--secret-file', $t->secret ]);

    return { engine => $engine, nginx => $t->nginx(
        engine => $engine,
        http => 'log_format node "<$llm_prefix>"; access_log node.log node;',
        pass => 'llm_pass unix:%%SOCK%%; llm_tenant $http_x_tenant;') };
}

# The configuration as it stands but for addresses.
my $conf = slurp('conf/nodes.conf');
for my $i (0, 1) {
    my $port = $nodes[$i]{nginx}->port;
    my $host = '10.0.0.' . ($i + 1);

    $conf =~ s/server \Q$host\E:8080 max_fails/server 127.0.0.1:$port max_fails/ or die 'no server';
}
$conf =~ s/listen 80;/listen 127.0.0.1:%%PORT%%;/ or die 'no port';
my $users = $t->file('llm.htpasswd', "anna:{PLAIN}x\nbert:{PLAIN}y\n");
$conf =~ s/llm\.htpasswd/$users/ or die 'no users';
my $front = $t->nginx(conf => "%%GLOBALS%%\nevents { }\nhttp {\n%%GLOBALS_HTTP%%\n$conf\n}\n");

sub ask {
    my ($user, $system, $text, %more) = @_;
    my %password = (anna => 'x', bert => 'y');

    return $front->client(timeout => 60)->post('/v1/chat/completions', {
        max_tokens => 8, temperature => 0, messages => [
            (defined $system ? { role => 'system', content => $system } : ()),
            { role => 'user', content => $text } ], %more },
        headers => { Authorization => 'Basic ' . encode_base64("$user:$password{$user}", '') });
}

# How often each node had each prefix.
sub seen {
    return map { my %n; $n{$_}++ for split /\n/, slurp("$_->{nginx}{dir}/node.log"); \%n } @nodes;
}

sub logged {
    my ($n) = @_;

    return wait_until(10, sub {
        my $lines = 0;
        for my $seen (seen()) { $lines += $_ for values %$seen }
        return $lines >= $n;
    });
}

sub system_text { return "You are assistant number $_[0]. " . 'Be brief and kind to everybody. ' x 40 }

# --- each on one node ---

is($front->client->post('/v1/chat/completions', {})->status, 401, 'the front asks who it is');
my $n = 10;
my %said;
for my $round (1, 2) {
    for my $i (1 .. $n) {
        my $r = ask('anna', system_text($i), 'Hello', stream => $round == 1 ? \0 : \1);
        is($r->status, 200, 'an answer') or diag($r->body);
        $said{$i} //= $r->text;
        is($r->text, $said{$i}, "the same for number $i") if $round == 2;
    }
}
ok(logged(2 * $n), 'all have come to a node');
my ($one, $two) = seen();
is(scalar(keys %$one) + keys %$two, $n, 'every prefix was on one node')
    or diag(explain([ $one, $two ]));
ok(%$one && %$two, 'and both have some');
is_deeply([ grep { $_ != 2 } values %$one, values %$two ], [], 'each time');
ask('bert', system_text($_), 'Hello')->body for 1 .. 4;
ok(logged(2 * $n + 4), 'another tenant');
($one, $two) = seen();
is(scalar(keys %$one) + keys %$two, $n + 4, 'has prefixes of its own');
ask('anna', undef, "Hello number $_")->body for 1 .. 12;
ok(logged(2 * $n + 16), 'what shares nothing');
($one, $two) = seen();
ok($one->{'<>'} && $two->{'<>'}, 'goes anywhere') or diag(($one->{'<>'} // 0) . ' ' . ($two->{'<>'} // 0));

# --- with that node gone ---

sub saved {
    my $c = $nodes[0]{engine}->redis;

    return $c->{saved} + $c->{there};
}

my $pages = 0;
wait_until(20, sub { my $before = $pages; $pages = saved(); sleep 0.3; $before == $pages && $pages });
cmp_ok($pages, '>', 0, 'what the first node has read is in Redis');
my $hits = $nodes[1]{engine}->redis->{hits};
$nodes[0]{nginx}->quit;
$nodes[0]{engine}->stop;
for my $i (1 .. $n) {
    my $r = ask('anna', system_text($i), 'Hello');
    is($r->status, 200, "number $i, without the first node") or diag($r->body);
    is($r->text, $said{$i}, 'says the same');
}
cmp_ok($nodes[1]{engine}->redis->{hits}, '>', $hits, 'with pages of the node that is gone');
is($nodes[1]{engine}->redis->{corrupt}, 0, 'which were whole');
is($nodes[1]{engine}->state->{running}, 0, 'and nothing runs');

$t->finish;
