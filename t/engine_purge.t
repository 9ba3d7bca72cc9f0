#!/usr/bin/perl

# llm-engine cache-purge: what it does to Redis and to engines, what it says, what it does when
# something of it cannot be done.

use strict;
use warnings;

use lib 't/lib';
use LLM::Process qw(wait_until);
use LLM::Test;

my $t = LLM::Test->new;
my $redis = $t->redis;
my $secret = $t->secret;
my $log = $t->dir . '/purge.log';

# Its exit status and what it prints, errors included.
sub purge {
    my ($tenant, @args) = @_;

    unlink $log;
    my $p = LLM::Process->start([ "$t->{build}/llm-engine", 'cache-purge', '--tenant', $tenant,
        '--timeout', 2, @args ], log => $log, env => { $t->_sanitizer_env(1) });
    my $status = $p->wait(30);
    return (defined $status ? $status >> 8 : 'none', slurp($log));
}

sub purged {
    my ($what, $status, $like, $tenant, @args) = @_;
    my ($got, $said) = purge($tenant, @args);

    is($got, $status, $what);
    like($said, $like, "$what: says so");
    return $said;
}

my @redis = ('--redis', $redis->url, '--secret-file', $secret);

# --- Redis alone ---

# The epoch's name says what the tag is.
purged('a tenant without anything', 0, qr/^Redis: 0 pages deleted, 0 are left$/m, 'anna', @redis);
my ($tag) = map { /^llm1:\{(\w{32})\}:epoch$/ ? $1 : () } $redis->names('llm1:*');
ok($tag, 'it has an epoch then');
my $epoch = $redis->command('GET', "llm1:{$tag}:epoch");
cmp_ok($epoch, '>', 1 << 30, 'that nobody could guess');

purged('another one', 0, qr/0 are left/, 'bert', @redis);
my ($other) = map { /^llm1:\{(\w{32})\}:epoch$/ && $1 ne $tag ? $1 : () } $redis->names('llm1:*');

$redis->command('SET', sprintf('llm1:{%s}:%064x', $tag, $_), 'x' x 100) for 1 .. 3000;
$redis->command('SET', sprintf('llm1:{%s}:%064x', $other, $_), 'x') for 1 .. 50;
$redis->command('SET', "llm1:{$tag}:bytes:7", 300000);
$redis->command('SET', "other:$_", 'x') for 1 .. 10;
purged('its pages', 0, qr/^Redis: 3000 pages deleted, 0 are left$/m, 'anna', @redis);
is(scalar($redis->pages("{$tag}")), 0, 'are gone');
is(scalar(() = $redis->pages("{$other}")), 50, 'nobody else\'s');
my $other_epoch = $redis->command('GET', "llm1:{$tag}:epoch");
cmp_ok($other_epoch, '>', 1 << 30, 'it has an epoch');
isnt($other_epoch, $epoch, 'but another one');
is($redis->command('GET', "llm1:{$tag}:bytes:7"), 300000, 'what it has written stays counted');
is(scalar(() = $redis->names('other:*')), 10, 'nor what is not the engines\'');
purged('over TCP', 0, qr/^Redis: 50 pages deleted, 0 are left$/m, 'bert', '--redis',
    $redis->tcp_url, '--secret-file', $secret);

$redis->command('SET', "llm1:{$tag}:epoch", 'no number');
purged('one whose epoch is no number', 0, qr/0 are left/, 'anna', @redis);
like($redis->command('GET', "llm1:{$tag}:epoch"), qr/^\d+\z/, 'has one then');

# --- an engine ---

my $engine = $t->engine(args => [ '--max-context', '1024', '--latent-memory', '64m' ]);
my $nginx = $t->nginx(server => 'location /t/v1/ { llm_pass unix:%%SOCK%%;'
    . ' llm_tenant $http_x_tenant; } location /p/v1/ { llm_pass unix:%%SOCK%%;'
    . ' llm_tenant $http_x_tenant; llm_cache_scope public; }');

sub cached {
    my ($tenant, $scope) = @_;
    my $r = $nginx->post('/' . ($scope // 't') . '/v1/completions',
        { prompt => [ 400 .. 599 ], max_tokens => 2, temperature => 0 },
        headers => { 'X-Tenant' => $tenant }, timeout => 30);

    return $r->usage->{prompt_tokens_details}{cached_tokens};
}

my @engine = ('--engine', 'unix:' . $engine->socket);
cached($_) for qw(anna bert);
is(cached('anna'), 192, 'a prefix is found');
my $at = quotemeta $engine->socket;
purged('a tenant of the engine', 0,
    qr/^unix:$at: 3 pages in memory are not found any more$/m, 'anna', @engine);
is(cached('anna'), 0, 'and not found any more');
is(cached('anna'), 192, 'until it is computed again');
is(cached('bert'), 192, 'another tenant\'s is still there');
cached('cleo', 'p');
purged('the public scope', 0, qr/: 3 pages/, '*public*', @engine);
is(cached('cleo', 'p'), 0, 'not found any more');

my @clients = map { my $c = $nginx->client(timeout => 60);
    $c->request('POST', '/t/v1/completions', headers => { 'X-Tenant' => 'dora' }, json =>
        { prompt => [ 700 .. 899 ], max_tokens => 600, temperature => 0, ignore_eos => \1,
            stream => \1 }); $c }
    1 .. 2;
my @streams = map { $_->response } @clients;
$_->event for @streams;
purged('while requests use the pages', 0, qr/: [1-9]\d* pages/, 'dora', @engine);
my @texts = map { $_->text } @streams;
is($texts[0], $texts[1], 'those go on, to the same text');

my $conf = $t->file('engine.conf', "model models/demo\nlisten unix:" . $engine->socket
    . "\nsecret-file $secret\nredis " . $redis->url . "\n");
purged('all of it by an engine\'s configuration', 0,
    qr/^Redis: nothing.*^unix:$at: 3 pages.*^Redis: 0 pages deleted, 0 are left$/ms, 'anna',
    '--config', $conf);

# What an engine may write under the new epoch, as long as it has not been told, is not found either.
$engine->signal('STOP');
$epoch = $redis->command('GET', "llm1:{$tag}:epoch");
my $p = LLM::Process->start([ "$t->{build}/llm-engine", 'cache-purge', '--tenant', 'anna',
    '--config', $conf ], log => $log, env => { $t->_sanitizer_env(1) });
ok(wait_until(10, sub { $redis->command('GET', "llm1:{$tag}:epoch") ne $epoch }),
    'there is another epoch before an engine is told');
$epoch = $redis->command('GET', "llm1:{$tag}:epoch");
$engine->signal('CONT');
is($p->wait(30), 0, 'it is told');
isnt($redis->command('GET', "llm1:{$tag}:epoch"), $epoch, 'and another one after that');

# --- what goes wrong ---

purged('an engine that is not there', 1, qr/no engine is there/, 'anna', '--engine',
    "unix:$secret.sock");
my $said = purged('of two engines one is not there', 1, qr/no engine is there/, 'anna', '--engine',
    "unix:$secret.sock,unix:" . $engine->socket);
like($said, qr/^unix:$at: 0 pages/m, 'the other is told all the same');
$engine->signal('STOP');
purged('an engine that stands still', 1, qr/does not answer in 2000 ms/, 'anna', @engine);
$engine->signal('CONT');
ok($nginx->get('/t/v1/models', headers => { 'X-Tenant' => 'x' })->status == 200, 'it goes on');

purged('no such name', 2, qr/--tenant wants a name of 1 to 255/, 'x' x 256, @redis);
purged('nothing to purge', 2, qr/there is nothing to purge/, 'anna');
purged('no secret', 2, qr/wants the engines' --secret-file/, 'anna', '--redis', $redis->url);
purged('no such address', 1, qr/--engine wants unix:PATH/, 'anna', '--engine', 'localhost');
purged('TLS', 1, qr/stunnel/, 'anna', '--redis', 'rediss://localhost', '--secret-file', $secret);
purged('a wrong password', 1, qr/Redis refuses AUTH: WRONGPASS/, 'anna', '--redis',
    $redis->url =~ s/change-me/wrong/r, '--secret-file', $secret);
my $open = $t->file('open', 'x' x 32);
chmod 0644, $open;
purged('a secret that others can read', 1, qr/chmod 600/, 'anna', '--redis', $redis->url,
    '--secret-file', $open);

my $relay = $t->relay($redis);
my @relay = ('--redis', $relay->url, '--secret-file', $secret);
my %bad = (
    'silent' => qr/does not answer in 2000 ms/,
    'refuse' => qr/hangs up|Connection reset|Broken pipe/,
    'cut=7' => qr/hangs up|Connection reset/,
    'rate=1' => qr/does not answer in 2000 ms/,
    'error=LOADING_the_dataset' => qr/Redis refuses AUTH: LOADING$/m,
    'twice' => qr/no Redis/,
    'before=' . unpack('H*', "\$1099511627776\r\n") => qr/no Redis/,
    'before=' . unpack('H*', "*1000000000\r\n") => qr/no Redis/,
    'before=' . unpack('H*', ">1\r\n") => qr/no Redis/,
);
for my $how (sort keys %bad) {
    $relay->set($how);
    purged("a Redis that is bad: $how", 1, $bad{$how}, 'anna', @relay);
}

# one that does not know AUTH, as some proxies, and says what it was told; one that paints
$relay->set('before=' . unpack('H*', "-ERR unknown command 'AUTH', with args beginning with:"
    . " 'llm-engine' 'change-me'\r\n"));
unlike(purged('a Redis without AUTH', 1, qr/Redis refuses AUTH: ERR$/m, 'anna', @relay),
    qr/change-me/, 'the password is not repeated');
$relay->set('before=' . unpack('H*', "+OK\r\n-ERR no \e[31mred\r\n"));
purged('errors that are no text', 1, qr/Redis refuses SET: ERR no $/m, 'anna', @relay);

# one that would have us delete what is not the tenant's
my $name = 'llm1:' . 'o' x 99; # as long as one of a page
$redis->command('SET', $name, 'x');
$relay->set('before=' . unpack('H*', "+OK\r\n+OK\r\n+OK\r\n"
    . "*2\r\n\$1\r\n0\r\n*1\r\n\$104\r\n$name\r\n"));
purged('other names', 1, qr/what answers SCAN is no Redis/, 'anna', @relay);
is($redis->command('GET', $name), 'x', 'are left alone');
$relay->set('before=' . unpack('H*', "+OK\r\n" x 4));
purged('what is no answer to SCAN', 1, qr/what answers SCAN is no Redis/, 'anna', @relay);

# one whose SCAN leads nowhere
$relay->set('endless=1000');
purged('a SCAN that comes round', 1, qr/Redis: SCAN goes round in circles/, 'anna', @relay);
$relay->set('endless=1000000000');
my $from = time;
like(purged('a SCAN without an end', 1, qr/Redis: SCAN has not come to its end in 10 s/, 'anna',
    @relay, '--timeout', 1), qr/^Redis: 0 pages deleted, not all$/m, 'and what was done');
cmp_ok(time - $from, '<', 20, 'in so long');

# what it knows does not end in a core file
$relay->set('silent');
my $waits = LLM::Process->start([ "$t->{build}/llm-engine", 'cache-purge', '--tenant', 'anna',
    @relay ], log => $log, env => { $t->_sanitizer_env(1) });
ok(wait_until(10, sub { slurp('/proc/' . $waits->pid . '/limits') =~
    /^Max core file size +1 +1 /m }), 'it leaves no core file');
$waits->kill;

$relay->set('');
purged('a good one', 0, qr/0 are left/, 'anna', @relay);
$redis->stop;
purged('one that is down', 1, qr/cannot connect to Redis/, 'anna', @redis, @engine);
like(slurp($log), qr/^unix:$at: 0 pages/m, 'the engine is told all the same');

$t->finish;
