#!/usr/bin/perl

# Prefixes in Redis: what one engine has computed, another one finds, and so does the same one after
# a restart; nobody else does, and nothing of it can be read there.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
srand(11);

my $redis = $t->redis(maxmemory => '512mb');
my @common = ('--max-context', '2048', '--latent-memory', '64m', '--deterministic');
my @shared = ('--redis', $redis->url, '--secret-file', $t->secret);

my $server = join "\n", map { "location /$_/v1/ { llm_pass unix:%%SOCK%%;"
    . " llm_tenant \$http_x_tenant; llm_cache_scope $_; }" } qw(tenant public off);

# An engine and an nginx before it.
sub node {
    my (@args) = @_;
    my $engine = $t->engine(args => [ @common, @args ]);

    return { engine => $engine, nginx => $t->nginx(server => $server, engine => $engine) };
}

sub ids { map { 300 + int rand 3000 } 1 .. shift }

sub ask {
    my ($node, $tenant, $prompt, %more) = @_;
    my $scope = delete $more{scope} // 'tenant';

    return $node->{nginx}->post("/$scope/v1/completions",
        { prompt => $prompt, max_tokens => 16, temperature => 1, seed => 5, ignore_eos => \1,
            %more },
        headers => { 'X-Tenant' => $tenant }, timeout => 60);
}

sub said { return $_[0]->status == 200 ? $_[0]->text : 'status ' . $_[0]->status }

sub counts { $_[0]{engine}->redis }

# Until the engine has done with n pages more, at least, than the last time, and with all it has:
# written them, or seen that it need not or may not.
sub settle {
    my ($node, $n) = @_;
    my ($done, $since) = (0, time);

    wait_until(20, sub {
        my $c = counts($node);
        my $now = $c->{saved} + $c->{there} + $c->{over_quota} + $c->{unsaved};
        ($done, $since) = ($now, time) if $now != $done;
        return $now >= ($node->{settled} // 0) + ($n // 0) && time - $since > 0.4;
    });
    $node->{settled} = $done;
    return counts($node)->{saved};
}

sub restart {
    my ($node) = @_;

    $node->{engine}->alive ? $node->{engine}->stop : 1;
    $node->{engine}->start;
    delete $node->{settled};
    wait_until(5, sub { ask($node, 'nobody', 'x', max_tokens => 1)->status == 200 });
}

# --- one saves, the other finds ---

my $plain = node();
my $one = node(@shared);
my $two = node(@shared);
my @prompt = ids(600);
my $want = said(ask($plain, 'anna', \@prompt));

is(said(ask($one, 'anna', \@prompt)), $want, 'an engine with Redis says what one without says');
cmp_ok(settle($one, 9), '>=', 9, 'and saves the nine pages');
cmp_ok(scalar(() = $redis->pages), '>=', 9, 'which are in Redis');
is(said(ask($two, 'anna', \@prompt)), $want, 'another one says the same');
cmp_ok(counts($two)->{hits}, '>', 0, 'with pages of the first one');
is(counts($two)->{corrupt}, 0, 'which were whole');
is(said(ask($two, 'anna', \@prompt)), $want, 'and again, from its memory');
settle($two);
is(counts($two)->{saved} + counts($one)->{saved}, scalar(() = $redis->pages),
    'what is there is not written again');

my %hits;
for my $round (1 .. 3) {
    my $before = counts($two)->{hits};
    my @other = ids(500 + 64 * $round);
    my $text = said(ask($plain, 'anna', \@other));

    ask($one, 'anna', \@other);
    settle($one, int @other / 64);
    is(said(ask($two, 'anna', \@other)), $text, "round $round: the same");
    $hits{$round} = counts($two)->{hits} - $before;
}
cmp_ok($hits{3}, '>', 1, 'pages are found when rates are known') or diag(explain(\%hits));
cmp_ok(counts($two)->{hit_tokens}, '>=', 64, 'their tokens are counted');
cmp_ok(counts($two)->{hit_tokens}, '<=', 64 * counts($two)->{hits}, 'those that were of use');
cmp_ok(counts($two)->{chosen} + counts($two)->{probes}, '>=', 3, 'so are the decisions');
cmp_ok(counts($two)->{bytes_per_s}, '>', 0, 'and how fast it is');

# --- it outlives the engine ---

restart($two);
is(said(ask($two, 'anna', \@prompt)), $want, 'after a restart: the same');
cmp_ok(counts($two)->{hits}, '>', 0, 'from Redis');

my $tcp = node('--redis', $redis->tcp_url, '--secret-file', $t->secret);
is(said(ask($tcp, 'anna', \@prompt)), $want, 'over TCP: the same');
cmp_ok(counts($tcp)->{hits}, '>', 0, 'from Redis');
$tcp->{engine}->stop;

# --- who may not find it ---

my $before = counts($two)->{hits};
is(said(ask($two, 'bert', \@prompt)), $want, 'another tenant gets the same answer');
is(said(ask($two, 'anna', \@prompt, scope => 'public')), $want, 'the public scope too');
is(said(ask($two, 'anna', \@prompt, scope => 'off')), $want, 'and one that is off');
is(counts($two)->{hits}, $before, 'but none of the tenant\'s pages');
settle($two);
my $pages = () = $redis->pages;
ask($one, 'anna', [ ids(300) ], scope => 'off');
sleep 0.5;
is(scalar(() = $redis->pages), $pages, 'what is off is not saved');

my $secret = $t->file('another', 'y' x 40);
chmod 0400, $secret;
for my $other ([ 'another secret', '--redis', $redis->url, '--secret-file', $secret ],
    [ 'other latents', @shared, '--latent-dtype', 'f32' ],
    [ 'other numerics', @shared, '--numerics', 'exact' ]) {
    my ($name, @args) = @$other;
    my $node = node(@args);

    is(ask($node, 'anna', \@prompt)->status, 200, "$name: served");
    is_deeply([ @{ counts($node) }{qw(hits corrupt)} ], [ 0, 0 ], "$name: finds nothing");
    $node->{engine}->stop;
}

# --- nothing of it can be read ---

# Canaries in words and in ids; a tenant each, so that equal latents meet as well.
my $canaries = long($ENV{LLM_SANITIZE} ? 4 : 20, 1000);
my ($values, $readable, $equal) = (0, 0, 0);

sub look_at_all {
    my %seen;

    for my $name ($redis->names) {
        my $value = $redis->command('GET', $name) // next;

        $readable++ if "$name $value" =~ /canary|secret|tenant/
            || index($value, pack 'L<2', 1010, 1011) >= 0
            || index($value, pack 'L>2', 1010, 1011) >= 0;
        next if length $value < 1000;
        $values++;
        $equal++ for grep { $seen{ substr $value, 64 + 512 * $_, 16 }++ }
            0 .. (length($value) - 80) / 512;
    }
    $redis->command('FLUSHALL');
}

$redis->command('FLUSHALL');
for my $i (1 .. $canaries) {
    my $text = join ' ', "canary number $i sings", map { "the secret of tenant $i is $_." }
        1 .. 12;

    ask($one, "tenant$i", $text, max_tokens => 1);
    ask($one, "tenant$i", [ 1000 .. 1127 ], max_tokens => 1);
    if ($i % 20 == 0 || $i == $canaries) {
        settle($one, 4 * (($i - 1) % 20 + 1));
        look_at_all();
    }
}
cmp_ok($values, '>=', 3 * $canaries, "$canaries canaries: their $values pages were there");
is($readable, 0, 'no word and no id of theirs was');
is($equal, 0, 'and equal latents are different bytes');

# --- a value in the wrong place ---

# Each of two tenants has the same prompt; their values change places.
$redis->command('FLUSHALL');
my @both = ids(400);
my $both = said(ask($plain, 'anna', \@both));
my %of;
for my $tenant (qw(hugo inga)) {
    my %there = map { $_ => 1 } $redis->pages;

    ask($one, $tenant, \@both);
    settle($one, 6);
    $of{$tenant} = [ grep { !$there{$_} } $redis->pages ];
}
is(scalar(@{ $of{hugo} }), scalar(@{ $of{inga} }), 'two tenants have as many pages');
my @values = map { $redis->command('GET', $_) } @{ $of{hugo} };
$redis->command('SET', $of{inga}[$_], $values[$_]) for 0 .. $#values;
restart($two);
is(said(ask($two, 'inga', \@both)), $both, 'with another tenant\'s values: the right answer');
wait_until(5, sub { counts($two)->{corrupt} > 0 });
cmp_ok(counts($two)->{corrupt}, '>', 0, 'they are refused');
is(counts($two)->{hits}, 0, 'all of them');

# A page of the tenant's own in the place of another one, and damaged ones.
restart($two);
my @own = @{ $of{hugo} };
$redis->command('SET', $own[$_], $values[ ($_ + 1) % @values ]) for 0 .. $#own;
is(said(ask($two, 'hugo', \@both)), $both, 'with pages in other places: the right answer');
is(counts($two)->{hits}, 0, 'none is taken');
ok(wait_until(5, sub { counts($two)->{corrupt} > 0 }), 'they are corrupt');

# Whether a value is not there any more; by then the right one may be.
sub is_gone {
    my ($bad) = @_;

    return scalar grep { my $now = $redis->command('GET', $own[$_]);
        !defined $now || $now ne $bad->[$_] } 0 .. $#own;
}

# One that is longer than a page can be is no answer that the engine asked for.
my @damage = (
    [ corrupt => sub { substr $_[0], 0, -1 } ],
    [ protocol => sub { "$_[0]x" } ],
    [ corrupt => sub { '' } ],
    [ corrupt => sub { my $v = $_[0]; substr($v, int rand length $v, 1) ^= "\1"; $v } ],
    [ corrupt => sub { my $v = $_[0]; substr($v, int rand length $v, 1) ^= "\x80"; $v } ],
    [ corrupt => sub { join '', map { chr rand 256 } 1 .. length $_[0] } ],
);
for my $i (0 .. $#damage) {
    my ($reason, $damaged) = @{ $damage[$i] };
    my @bad = map { $damaged->($_) } @values;

    restart($two);
    $redis->command('SET', $own[$_], $bad[$_]) for 0 .. $#own;
    is(said(ask($two, 'hugo', \@both)), $both, "damage $i: the right answer");
    is(counts($two)->{hits}, 0, "damage $i: nothing is taken");
    ok(wait_until(5, sub { counts($two)->{$reason} > 0 }), "damage $i: it is counted as $reason");
    ok(wait_until(5, sub { is_gone(\@bad) }), "damage $i: and deleted");
}
$redis->command('DEL', @own);
$redis->command('RPUSH', $_, 'a', 'list') for @own;
restart($two);
is(said(ask($two, 'hugo', \@both)), $both, 'lists in the place of values: the right answer');
ok(wait_until(5, sub { counts($two)->{corrupt} > 0 }), 'they are corrupt');
ok(wait_until(5, sub { grep { $redis->command('TYPE', $_) ne 'list' } @own }), 'and deleted');

# --- an engine that dies while it saves ---

# SETs trickle through a relay; what is there afterwards is whole or not there.
$redis->command('FLUSHALL');
my $relay = $t->relay($redis);
my @many = map { [ ids(500) ] } 1 .. 4;
my @many_said = map { said(ask($plain, 'jana', $_)) } @many;
for my $round (1 .. long($ENV{LLM_SANITIZE} ? 1 : 3, 30)) {
    my $dying = node('--redis', $relay->url, '--secret-file', $t->secret);

    $relay->set('delay=2');
    ask($dying, 'jana', $_) for @many;
    sleep rand 0.05;
    $dying->{engine}->kill;
    restart($two);
    is(said(ask($two, 'jana', $many[$_])), $many_said[$_], "killed, round $round: right")
        for 0 .. $#many;
    is(counts($two)->{corrupt}, 0, 'nothing half-written is there');
    settle($two);
}
cmp_ok(scalar(() = $redis->pages), '>', 0, 'what the killed ones left is of use');

# --- a secret that is none ---

my $open = $t->file('open', 'z' x 40);
chmod 0644, $open;
for my $case ([ $open, qr/--secret-file: .*chmod 600/ ], [ "$open.none", qr/No such file/ ]) {
    my ($file, $why) = @$case;
    my $log = $t->dir . '/test-config.log';
    my $p = LLM::Process->start([ "$t->{build}/llm-engine", '--model', 'models/demo',
        '--test-config', '--redis', $redis->url, '--secret-file', $file ], log => $log);

    is($p->wait(60), 256, 'an engine does not start with it');
    like(slurp($log), $why, 'and says why');
    unlink $log;
}

# --- how long, how much ---

my $page = $redis->command('STRLEN', ($redis->pages)[0]);
my $ttl = $redis->command('TTL', ($redis->pages)[0]);
cmp_ok($ttl, '<=', 4 * 3600, 'pages stay for four hours');
cmp_ok($ttl, '>', 4 * 3600 - 600, 'not less');

$redis->command('FLUSHALL');
my @limits = (@shared, '--redis-ttl', 3600, '--redis-quota', 10 * $page);
my @limited = map { node(@limits) } 1, 2;
for my $node (@limited) {
    ask($node, 'karl', [ ids(450) ]);
    settle($node, 7);
}
my @karl = $redis->pages;
cmp_ok(scalar(@karl), '<=', 10, 'two engines keep within a tenant\'s quota together');
cmp_ok(scalar(@karl), '>=', 7, 'and use it');
cmp_ok(counts($limited[1])->{over_quota}, '>', 0, 'what is too much is counted');
cmp_ok($redis->command('TTL', $karl[0]), '<=', 3600, '--redis-ttl');
ask($limited[1], 'lena', [ ids(450) ]);
settle($limited[1], 7);
cmp_ok(scalar(() = $redis->pages), '>', scalar @karl, 'another tenant has his own');
$_->{engine}->stop for @limited;

# --- a Redis that may be read and not written ---

$redis->command(qw(ACL SETUSER llm-engine -set));
my $denied = qr/warn.*redis: no pages are saved for now: it answers NOPERM$/m;
ok(wait_until(20, sub { ask($one, 'pia', [ ids(200) ]); $one->{engine}->log_text =~ $denied }),
    'that nothing is saved is said, and why');
$redis->command(qw(ACL SETUSER llm-engine +set));
ok(wait_until(30, sub {
    ask($one, 'pia', [ ids(200) ]);
    $one->{engine}->log_text =~ /redis: pages are saved again$/m;
}), 'and when it is over');

# --- purging ---

sub purge {
    my ($tenant, @args) = @_;

    return LLM::Process->start([ "$t->{build}/llm-engine", 'cache-purge', '--tenant', $tenant,
        @shared, @args ], log => $t->dir . '/purge.log', env => { $t->_sanitizer_env(1) })
        ->wait(60);
}

sub found {
    my ($node, $tenant) = @_;
    my $before = counts($node)->{hits};
    my $r = ask($node, $tenant, \@prompt);

    is(said($r), $want, "$tenant: the right answer");
    return { memory => $r->usage->{prompt_tokens_details}{cached_tokens},
        redis => counts($node)->{hits} - $before };
}

$redis->command('FLUSHALL');
restart($_) for $one, $two;
for my $tenant (qw(mona nils)) {
    ask($one, $tenant, \@prompt);
    settle($one, 9);
}
cmp_ok(found($two, 'mona')->{redis}, '>', 0, 'before a purge pages are found in Redis');
cmp_ok(found($two, 'mona')->{memory}, '>', 0, 'and in memory');
settle($two);
my $left = () = $redis->pages;
is(purge('mona', '--engine', join ',', map { 'unix:' . $_->{engine}->socket } $one, $two), 0,
    'a tenant is purged');
cmp_ok(scalar(() = $redis->pages), '<', $left, 'his pages are gone');
is_deeply(found($two, 'mona'), { memory => 0, redis => 0 }, 'no engine finds any');
settle($two, 9);
cmp_ok(found($one, 'mona')->{redis}, '>', 0, 'until it is computed again');
cmp_ok(found($two, 'nils')->{redis}, '>', 0, 'another tenant\'s are there');

# An engine that is not told goes on saving: nobody finds what it names by the old epoch.
is(purge('nils'), 0, 'a purge that no engine is told of');
restart($two);
is(found($two, 'nils')->{redis}, 0, 'what was there is not found');
ask($one, 'nils', [ ids(300) ]);
settle($one, 4);
my @later = ids(300);
my $later = said(ask($plain, 'nils', \@later));
is(said(ask($one, 'nils', \@later)), $later, 'the one that was not told serves');
settle($one, 4);
$before = counts($two)->{hits};
is(said(ask($two, 'nils', \@later)), $later, 'and what it computes after that');
cmp_ok(counts($two)->{hits}, '>', $before, 'is found, as it has seen the new epoch');

# Nor does it keep in memory what is older than the purge, once Redis has told it of that.
sub cached { ask($one, 'olga', \@prompt)->usage->{prompt_tokens_details}{cached_tokens} }

cached();
cmp_ok(cached(), '>', 0, 'a prefix is in memory');
settle($one, 9);
is(purge('olga'), 0, 'another purge that no engine is told of');
ask($one, 'olga', [ ids(300) ]);
ok(wait_until(20, sub { cached() == 0 }), 'soon after the next request nothing is found');
settle($one, 9);
$before = counts($two)->{hits};
is(said(ask($two, 'olga', \@prompt)), $want, 'another engine');
cmp_ok(counts($two)->{hits}, '>', $before, 'finds what it has computed since');

$t->finish;
