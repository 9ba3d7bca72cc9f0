#!/usr/bin/perl

# Several engines of one model: what begins alike goes to the one that has read it, and what one
# engine sends back before it has begun the next one answers.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my @engines = map { $t->fake_engine(script => 'prompt=7') } 0 .. 2;
my ($a, $b, $c) = @engines;
my ($one, $two, $three) = map { 'unix:' . $_->socket } @engines;
my $nginx = $t->nginx(
    http => <<'EOT',
        llm_limit_zone $llm_tenant zone=tokens:1m rate=1t/m;
        llm_keepalive_interval 50ms;
        log_format llm '$status $llm_finish_reason $llm_prompt_tokens $llm_completion_tokens';
        access_log llm.log llm;
EOT
    server => <<"EOT",
        llm_tenant \$http_x_tenant;
        location /two/v1/ { llm_model m $one $two; }
        location /off/v1/ { llm_model m $one $two; llm_cache_scope off; }
        location /public/v1/ { llm_model m $one $two; llm_cache_scope public; }
        location /limited/v1/ { llm_model m $one $two; llm_limit zone=tokens burst=1000 nodelay; }
        location /one/v1/ { llm_model m $one; }
EOT
    pass => "llm_model m $one $two $three;");

sub submitted { return map { $_->counters->{submitted} } @engines }

sub send_chat {
    my ($system, $user, %more) = @_;
    my $client = $nginx->client;
    my $tenant = delete $more{tenant} // 'a';
    my $at = delete $more{at} // '';

    $client->request('POST', "$at/v1/chat/completions", headers => { 'X-Tenant' => $tenant }, json => {
        messages => [ (defined $system ? { role => 'system', content => $system } : ()),
            { role => 'user', content => $user } ], %more });
    return $client;
}

sub chat { return send_chat(@_)->response }

# Which engine got how much of what was done.
sub shares {
    my ($do) = @_;
    my @before = submitted();

    $do->();
    return map { $_ - shift @before } submitted();
}

sub chats {
    my ($n, $system, %more) = @_;

    return shares(sub { chat($system, 'tokens=1', %more)->body for 1 .. $n });
}

# --- what begins alike ---

my (%at, @used);
for my $i (1 .. 30) {
    my @shares = chats(4, "You are number $i.");
    my ($at) = grep { $shares[$_] } 0 .. 2;

    $at{$i} = $at;
    $used[$at]++;
    is_deeply([ sort @shares ], [ 0, 0, 4 ], "number $i stays where it was") or diag("@shares");
}
ok((grep { ($_ // 0) >= 3 } @used) == 3, 'others go elsewhere') or diag("@used");
my @shares = chats(30, undef);
is_deeply(\@shares, [ 10, 10, 10 ], 'what shares nothing takes turns') or diag("@shares");
@shares = chats(10, 'You are number 1.', at => '/off');
is_deeply(\@shares, [ 5, 5, 0 ], 'so does what nobody may find');
for my $tenant ('b' .. 'i') {
    @shares = chats(2, 'You are everybody\'s.', at => '/public', tenant => $tenant);
    $used[3]++ if $shares[0];
    $used[4]++ if $shares[1];
}
ok(!$used[3] || !$used[4], 'what everybody may find is in one place');

# a worker that has seen nothing of it knows, too

$nginx->reload;
sleep 0.5;
for my $i (1 .. 5) {
    @shares = chats(2, "You are number $i.");
    is($shares[ $at{$i} ], 2, "number $i stays where it was, in a new worker");
}

# load comes before it

my $home = $engines[ $at{1} ];
$home->set('queued=8');
@shares = chats(3, 'You are number 1.');
is($shares[ $at{1} ], 3, 'a little more load does not matter');
$home->set('queued=9');
@shares = chats(3, 'You are number 1.');
is($shares[ $at{1} ], 0, 'more of it does');
is_deeply([ sort @shares ], [ 0, 0, 3 ], 'and from then on the next one has it, too');
$home->set('queued=0');
@shares = shares(sub {
    my @burst = map { send_chat('You are a burst.', 'first=300') } 1 .. 60;
    is($_->response->status, 200, 'a burst') for @burst;
});
ok((grep { $_ >= 10 } @shares) == 3, 'a burst of one prefix is shared') or diag("@shares");
$home->set('state=draining');
@shares = chats(5, 'You are number 1.');
is($shares[ $at{1} ], 0, 'one that drains gets nothing');
$home->set('state=ready');

# --- what comes back ---

# The next request goes to the first of two engines, whatever they say of themselves.
sub at_first {
    my ($do) = @_;

    $b->set('state=loading');
    my $done = $do->();
    $b->set('state=ready');
    return $done;
}

sub sent_to_first {
    my ($user, %more) = @_;
    my ($n) = submitted();
    my $client = at_first(sub {
        my $client = send_chat(undef, $user, at => '/two', %more);
        wait_until(5, sub { (submitted())[0] > $n });
        return $client;
    });

    return $client;
}

$b->script('tokens=3 prompt=9');
for my $status (qw(draining queue_full)) {
    for my $stream (\0, \1) {
        my $name = "$status, stream $$stream";

        $a->script("prompt=7 status=$status end=100");
        my @shares = shares(sub {
            my $r = sent_to_first('x', stream => $stream)->response;
            is($r->status, 200, "$name: answered") or diag($r->body);
            is($r->text, 't0 t1 t2', "$name: in full");
        });
        is_deeply(\@shares, [ 1, 1, 0 ], "$name: by the next");
    }
}
$a->script('prompt=7 status=draining end=400');
my $r = sent_to_first('x', stream => \1)->response;
is($r->text, 't0 t1 t2', 'also where comments have been sent meanwhile');
is(sent_to_first('x')->response->usage->{prompt_tokens}, 9, 'the usage is that of who answered');
undef $r;
ok(wait_until(5, sub { slurp("$nginx->{dir}/llm.log") =~ /^200 stop 9 3$/m }), 'and so is the log\'s');
$_->script('status=draining end=100') for $a, $b;
@shares = shares(sub {
    my $r = sent_to_first('x')->response;
    is($r->status, 503, 'none is left');
    is($r->json->{error}{code}, 'engine_draining', 'which is said');
    ok($r->header('Retry-After'), 'and when to come back');
});
is_deeply(\@shares, [ 1, 1, 0 ], 'each was asked once');
$b->script('');
$a->script('tokens=2 every=50 status=draining');
@shares = shares(sub {
    my $r = sent_to_first('x', stream => \1)->response;
    is($r->text, 't0 t1', 'what has begun');
    is($r->api_error->{code}, 'engine_draining', 'is not begun again');
});
is_deeply(\@shares, [ 1, 0, 0 ], 'anywhere');
$a->script('status=tenant_full');
@shares = shares(sub { is(sent_to_first('x')->response->status, 429, 'a tenant\'s own fault') });
is_deeply(\@shares, [ 1, 0, 0 ], 'is one everywhere');
$a->script('status=draining');
@shares = shares(sub { is(chat(undef, 'x', at => '/one')->status, 503, 'the only engine') });
is_deeply(\@shares, [ 1, 0, 0 ], 'has no next');
$a->script('');

# what an engine has not read when it ends

for my $drains (1, 0) {
    $a->set('consume=off');
    my $client = at_first(sub {
        my $client = send_chat(undef, 'tokens=2', at => '/two');
        sleep 0.2;
        return $client;
    });
    $a->set('state=draining') if $drains;
    $a->drop;
    my $r = $client->response;
    is($r->status, $drains ? 200 : 503, $drains ? 'unread by one that drained' : 'by one that died')
        or diag($r->body);
    is(($r->json // {})->{error}{code}, 'engine_lost', 'is lost') if !$drains;
    $a->set('state=ready consume=on');
    ok(wait_until(5, sub { chat(undef, 'tokens=1', at => '/one')->status == 200 }), 'it is back');
}
$a->script('first=60000');
my $client = sent_to_first('tokens=2');
sleep 0.1;
$a->set('state=draining');
$a->drop;
is($client->response->status, 503, 'what it had counted may have begun');
$a->set('state=ready');
$a->script('');
ok(wait_until(5, sub { chat(undef, 'tokens=1', at => '/one')->status == 200 }), 'it is back');

# an engine that is restarted is found soon, however long it was away

my $slow = 0;
for (1 .. 5) {
    $a->stop;
    for (1 .. 25) {
        chat(undef, 'x', at => '/one')->body;
        sleep 0.06;
    }
    $a->start;
    my $start = time;
    wait_until(5, sub { chat(undef, 'tokens=1', at => '/one')->status == 200 });
    $slow += time - $start;
}
ok($slow < 0.8, 'it is found soon') or diag($slow);

# limits: only what was made is charged

sub left {
    my $r = chat(undef, 'prompt=0 tokens=0', at => '/limited', tenant => $_[0], max_tokens => 1);

    return $r->header('x-ratelimit-remaining-tokens');
}

my $before = left('l');
$a->script('prompt=500 status=draining end=100');
$b->script('prompt=20 tokens=3');
for my $stream (\0, \1) {
    my $r = sent_to_first('x', at => '/limited', tenant => 'l', max_tokens => 400,
        stream => $stream)->response;
    is($r->text, 't0 t1 t2', 'a limited one, answered by the next');
}
$a->script('');
$b->script('');
my $spent = $before - left('l');
ok($spent >= 46 && $spent < 60, 'is charged once') or diag($spent);

$t->finish;
