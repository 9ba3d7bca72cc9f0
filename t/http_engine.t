#!/usr/bin/perl

# Engines that are not there, not ready, full, dying, silent, or that break the protocol.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my $second = $t->fake_engine;
my $third = $t->fake_engine;
my ($one, $two, $three) = map { $_->socket } $engine, $second, $third;
my $nginx = $t->nginx(
    http => 'client_max_body_size 8m;',
    server => <<"EOT");
        llm_tenant test;
        location = /health { llm_pass unix:%%SOCK%%; }
        location /nobody/v1/ { llm_pass unix:%%DIR%%/nobody.sock; }
        location /plain { return 200 "plain"; }
        location /third/v1/ { llm_pass unix:$three; }
        location /both/v1/ { llm_model m unix:$one unix:$two; }
        location /models/v1/ { llm_model a unix:%%DIR%%/nobody.sock; llm_model b unix:$one; }
EOT
my ($worker) = $nginx->workers;

sub ask {
    my ($prompt, %more) = @_;
    my $uri = delete $more{uri} // '/v1/completions';

    return $nginx->post($uri, { prompt => $prompt, %more });
}

sub refused {
    my ($name, $code, $r) = @_;

    is($r->status, 503, "$name: 503");
    is(($r->json // {})->{error}{code}, $code, "$name: code");
    like($r->header('Retry-After'), qr/^[1-9]\d*$/, "$name: Retry-After");
}

sub works {
    my ($name) = @_;
    my $r;

    ok(wait_until(5, sub { $r = ask('tokens=2'); $r->status == 200 }), "$name: answers again")
        or diag($r->body);
    is($r->text, 't0 t1', "$name: rightly");
}

# --- it never ends what is cancelled: looked for at the end ---

my $forgotten = $nginx->client;
$forgotten->request('POST', '/third/v1/completions',
    json => { prompt => 'first=600000 cancel=never' });
wait_until(5, sub { $third->counters->{requests} == 1 });
$forgotten->close;

# --- not there ---

refused('nobody', 'engine_down', ask('x', uri => '/nobody/v1/completions'));
refused('nobody, a list', 'engine_down', $nginx->get('/nobody/v1/models'));
my $c = $nginx->client;
$c->write("POST /nobody/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
refused('nobody, before the body', 'engine_down', $c->response);
is($nginx->get('/plain')->body, 'plain', 'other locations serve');
$c = $nginx->client;
refused('one of two models', 'engine_down', $c->post('/models/v1/completions',
    { model => 'a', prompt => 'x' }, keepalive => 1));
is($c->post('/models/v1/completions', { model => 'b', prompt => 'tokens=1' })->text, 't0', 'the other');

# --- not ready ---

for my $case ([ 'state=loading', 'engine_loading' ], [ 'state=draining', 'engine_draining' ],
    [ 'state=failed', 'engine_failed' ]) {
    my ($state, $code) = @$case;

    $engine->set($state);
    refused($state, $code, ask('x'));
    refused("$state, health", $code, $nginx->get('/health'));
    refused("$state, models", $code, $nginx->get('/v1/models'));
    $engine->set('state=ready');
    is(ask('tokens=1')->status, 200, "$state: over");
}
$engine->set('queued=10 queue_limit=10');
refused('a full queue', 'engine_full', ask('x'));
is($nginx->get('/health')->status, 200, 'a full queue is no illness');
$engine->set('queued=9 queue_limit=10');
is(ask('tokens=1')->status, 200, 'room for one more');
$engine->set('queued=0 queued_tokens=500 token_limit=500');
refused('a queue full of tokens', 'engine_full', ask('x'));
$engine->set('queued_tokens=0 token_limit=0');

# --- it dies ---

sub stream {
    my ($prompt) = @_;
    my $r = ask($prompt, stream => \1);

    $r->event;
    return $r;
}

for my $how (qw(kill stop drop)) {
    my $waiting = $nginx->client;
    $waiting->request('POST', '/v1/completions', json => { prompt => 'first=60000' });
    my $streaming = stream('tokens=100000 every=20');
    is($streaming->status, 200, "$how: a stream");
    my $start = time;
    $engine->$how;
    refused("$how: not begun", 'engine_lost', $waiting->response);
    is($streaming->api_error->{code}, 'engine_lost', "$how: an event");
    ok(!$streaming->complete, "$how: a broken end");
    ok(time - $start < 1, "$how: within a second");
    if ($how ne 'drop') {
        refused("$how: afterwards", 'engine_down', ask('x'));
        refused("$how: health", 'engine_down', $nginx->get('/health'));
        $engine->start;
    }
    works($how);
}
is(join(' ', $nginx->workers), $worker, 'the worker lives');

# --- it stands still ---

$engine->set('beat=off');
my $stuck = $nginx->client(timeout => 20);
$stuck->request('POST', '/v1/completions', json => { prompt => 'hang=first' });
my $streaming = stream('tokens=1 hang=end');
$streaming->{client}{timeout} = 20;
my $start = time;
refused('no beat: not begun', 'engine_lost', $stuck->response);
is($streaming->api_error->{code}, 'engine_lost', 'no beat: an event');
ok(time - $start > 2 && time - $start < 6, 'no beat: within five seconds') or diag(time - $start);
ok(wait_until(5, sub { $nginx->get('/health')->json->{error}{code} eq 'engine_stalled' }),
    'no beat: a new session sees it');
refused('no beat: afterwards', 'engine_stalled', ask('x'));
refused('no beat: health', 'engine_stalled', $nginx->get('/health'));
$engine->set('beat=on');
works('a new beat');

# --- it takes nothing ---

$engine->set('consume=off queued_tokens=20000 prefill_rate=1000');
my @clients = map { my $c = $nginx->client;
    $c->request('POST', '/v1/completions', json => { prompt => 'x' x 400_000 }); $c } 1 .. 30;
my @full = grep { $_->fill(0.3) } @clients;
ok(@full > 5 && @full < 30, 'a full ring') or diag(scalar @full);
my $full = $full[0]->response;
refused('a full ring', 'engine_full', $full);
ok($full->header('Retry-After') >= 20 && $full->header('Retry-After') <= 26, 'and measured');
$_->close for @clients;
$engine->set('consume=on queued_tokens=0 prefill_rate=0');
works('after a full ring');
ok($engine->idle, 'what was given up meanwhile is cancelled');

# --- it has no room just now ---

sub large {
    my ($uri) = @_;
    my $c = $nginx->client;

    $c->request('POST', $uri, json => { prompt => 'x' x 400_000 });
    return $c;
}

$engine->set('consume=off');
@clients = map { large('/v1/completions') } 1 .. 30;
sleep 0.5;
$engine->set('consume=on');
is(scalar(grep { $_->response->status == 200 } @clients), 30, 'large prompts wait for room');
$engine->set('consume=off');
$second->set('queued=50');
@clients = map { large('/both/v1/completions') } 1 .. 30;
my $elsewhere = $second->counters->{submitted};
ok(wait_until(1, sub { $second->counters->{submitted} > $elsewhere }), 'or go to another engine');
$engine->set('consume=on');
$second->set('queued=0');
is(scalar(grep { $_->response->status == 200 } @clients), 30, 'and all are answered');

# --- it does not greet ---

$second->set("accept=$_"), $second->drop for 'silent';
my $c2 = $nginx->client;
$start = time;
$c2->request('POST', '/both/v1/completions', json => { prompt => 'tokens=1' });
is($c2->response->status, 200, 'another engine instead of one that keeps silent');
for my $greeting (qw(silent close garbage reject)) {
    $engine->set("accept=$greeting");
    $engine->drop;
    sleep 0.2;
    $start = time;
    my $r = ask('x');
    is($r->status, 503, "$greeting: 503");
    ok(time - $start < 3, "$greeting: soon");
    $engine->set('accept=normal');
    works($greeting);
}
like($nginx->error_log, qr/refused by the script/, 'why it refused is logged');
$second->set('accept=normal');

# --- two engines of one model ---

ok(wait_until(5, sub { ask('tokens=1', uri => '/both/v1/completions');
    $second->counters->{sessions} }), 'the second is back');
my @before = map { $_->counters->{submitted} } $engine, $second;
ask("tokens=1 $_", uri => '/both/v1/completions')->body for 1 .. 20;
my @share = map { $_->counters->{submitted} - shift @before } $engine, $second;
ok($share[0] >= 5 && $share[1] >= 5, 'both work') or diag("@share");
$engine->set('queued=50');
my $before = $second->counters->{submitted};
ask('tokens=1', uri => '/both/v1/completions')->body for 1 .. 10;
is($second->counters->{submitted} - $before, 10, 'the less loaded one works');
$engine->set('queued=0');
$before = $second->counters->{submitted};
@clients = map { my $c = $nginx->client; $c->request('POST', '/both/v1/completions',
    json => { prompt => "first=300 $_" }); $c } 1 .. 20;
is($_->response->status, 200, 'a burst') for @clients;
my $taken = $second->counters->{submitted} - $before;
ok($taken >= 7 && $taken <= 13, 'a burst is shared') or diag($taken);

# a request is as many as it has choices

my $wide = $nginx->client;
$wide->request('POST', '/v1/completions', json => { prompt => 'hang=end', n => 20, max_tokens => 1 });
ok(wait_until(2, sub { $engine->counters->{requests} == 1 }), 'one with many choices');
$before = $second->counters->{submitted};
@clients = map { my $c = $nginx->client; $c->request('POST', '/both/v1/completions',
    json => { prompt => 'first=300' }); $c } 1 .. 10;
is($_->response->status, 200, 'beside it') for @clients;
is($second->counters->{submitted} - $before, 10, 'counts them all');
$wide->close;
ok(wait_until(2, sub { $engine->counters->{requests} == 0 }), 'over');

# what they have not read yet is not in their state: the worker knows what it has sent

$_->set('consume=off') for $engine, $second;
my @to_one = map { my $c = $nginx->client; $c->request('POST', '/v1/completions',
    json => { prompt => 'tokens=1' }); $c } 1 .. 10;
sleep 0.2;
@before = map { $_->counters->{submitted} } $engine, $second;
@clients = map { my $c = $nginx->client; $c->request('POST', '/both/v1/completions',
    json => { prompt => 'tokens=1' }); $c } 1 .. 10;
sleep 0.2;
$_->set('consume=on') for $engine, $second;
is($_->response->status, 200, 'sent unseen') for @to_one, @clients;
@share = map { $_->counters->{submitted} - shift @before } $engine, $second;
is("@share", '10 10', 'who has been sent more gets less');
for my $state ('state=draining', 'state=loading', 'beat=off') {
    $engine->set($state);
    sleep 4.5 if $state =~ /beat/;
    is(scalar(grep { ask('tokens=1', uri => '/both/v1/completions')->status == 200 } 1 .. 4), 4,
        "$state: the other one works");
    $engine->set('state=ready beat=on');
}
$engine->kill;
is(scalar(grep { ask('tokens=1', uri => '/both/v1/completions')->status == 200 } 1 .. 6), 6,
    'one of two is enough');
$engine->start;
works('two engines');

# --- it breaks the protocol: the session ends, the worker does not ---

my @breaches = qw(tail tail_back head arena_head offset offset_huge length type direction slot short
    sums utf8 cut choice kind logprobs choice_end garbage);
for my $breach (@breaches) {
    my $victim = $nginx->client;
    $victim->request('POST', '/v1/completions', json => { prompt => 'first=60000' });
    my $r = ask("tokens=5 every=5 at=2 bad=$breach", stream => \1);
    is($r->status, 200, "$breach: begins");
    is(($r->api_error // {})->{code}, 'engine_lost', "$breach: ends");
    ok(!$r->complete, "$breach: broken");
    refused("$breach: and with it the session", 'engine_lost', $victim->response);
    works($breach);
}
for my $harmless (qw(generation free_slot after twice spurious)) {
    my $r = ask("tokens=4 every=2 at=2 bad=$harmless", stream => \1);
    unlike($r->body, qr/LATE/, "$harmless: nothing late is heard");
    works($harmless);
}
for my $stream (\0, \1) {
    my $r = $nginx->post('/v1/chat/completions', { stream => $stream,
        messages => [ { role => 'user', content => 'tokens=1 bad=unnamed' } ] });
    is($r->api_error->{code}, 'engine_lost', 'a tool without a name');
    works('unnamed');
}
my $r = ask('tokens=2 bad=after');
is($r->status, 500, 'finished before its choice has ended');
is($r->json->{error}{code}, 'engine_failed', 'is a failure');
$r = ask('tokens=1 size=100000', max_tokens => 1);
is($r->json->{error}{code}, 'engine_failed', 'a text longer than any answer to this request');
is(ask('tokens=1 size=100000', max_tokens => 1000)->status, 200, 'not to one that asks for more');
is(join(' ', $nginx->workers), $worker, 'still the same worker');

# --- it dies in the middle of a write, over HTTP/2 and HTTP/1 ---

# it leaves, and the worker has not yet heard all that it said

my @both = map { my $c = $nginx->client; $c->request('POST', '/v1/completions',
    json => { prompt => $_, max_tokens => 3000 }); $c } 'first=300 tokens=3000', 'first=400 bad=close';
wait_until(5, sub { $engine->counters->{requests} == 2 });
kill 'STOP', $worker;
sleep 0.7;
kill 'CONT', $worker;
is($both[0]->response->status, 200, 'what was said before the end holds');
refused('what was not', 'engine_lost', $both[1]->response);
works('close');

$engine->script('');
$r = ask('tokens=5 every=5 at=2 bad=die', stream => \1);
is($r->api_error->{code}, 'engine_lost', 'half a descriptor');
$engine->start;
works('half a descriptor');
is(join(' ', $nginx->workers), $worker, 'and still');

# a worker writes to a socket whose other end is gone

$engine->signal('STOP');
@clients = map { my $c = $nginx->client; $c->request('POST', '/v1/completions',
    json => { prompt => 'x' }); $c } 1 .. 5;
sleep 0.3;
$engine->kill;
refused('killed asleep', 'engine_lost', $_->response) for @clients;
$engine->start;
works('killed asleep');
is(join(' ', $nginx->workers), $worker, 'no signal ends a worker');

ok($nginx->wait_log(qr/keeps what is cancelled, requests lost: 1/, 40),
    'a session that keeps a cancelled request is dropped');
ok(wait_until(5, sub { ask('x', uri => '/third/v1/completions')->status == 200 }), 'and made anew');

$t->finish;
