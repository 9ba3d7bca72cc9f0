#!/usr/bin/perl

# Limits of requests and of tokens: who gets in, what is charged, and that nothing is left over.
#
# A rate of one a minute gives nothing back while a test runs, so that a bucket is its burst less
# what was charged; x-ratelimit-remaining-… of any answer tells.

use strict;
use warnings;

use lib 't/lib';
use LLM::Process qw(alive);
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my $leaving = $t->fake_engine(script => 'status=draining');
my $conf = <<'EOT';
    log_format llm '$http_key $status $llm_limit_status $llm_completion_tokens';
    access_log llm.log llm;
    lingering_timeout 100ms;
    llm_limit_zone $http_key zone=requests:1m rate=1r/m;
    llm_limit_zone $http_key zone=tokens:1m rate=1t/m;
    llm_limit_zone $http_all zone=all:1m rate=1t/m;
    llm_limit_zone $http_all zone=alltogether:1m rate=1r/m;
    llm_limit_zone $http_key zone=second:1m rate=600r/m;
    llm_limit_zone $http_key zone=fast:1m rate=6000t/m;
    llm_limit_zone $http_key zone=small:32k rate=1t/m;
EOT
my $server = <<'EOT';
    llm_tenant a;
    llm_limit_log_level warn;
    location /requests/v1/ { llm_pass unix:%%SOCK%%; llm_limit zone=requests burst=3 nodelay; }
    location /tokens/v1/ { llm_pass unix:%%SOCK%%; llm_limit zone=tokens burst=1000 nodelay; }
    location /both/v1/ {
        llm_pass unix:%%SOCK%%;
        llm_limit zone=requests burst=10 nodelay;
        llm_limit zone=tokens burst=1000 nodelay;
        llm_limit zone=all burst=1500 nodelay;
    }
    location /two/v1/ {
        llm_pass unix:%%SOCK%%;
        llm_limit zone=requests burst=10 nodelay;
        llm_limit zone=alltogether burst=2 nodelay;
    }
    location /dry/v1/ {
        llm_pass unix:%%SOCK%%;
        llm_limit zone=requests burst=2 nodelay dry_run;
        llm_limit zone=tokens burst=100 nodelay dry_run;
    }
    location /slow/v1/ {
        llm_pass unix:%%SOCK%%; llm_limit zone=second burst=20; client_max_body_size 4m;
    }
    location /smooth/v1/ {
        llm_pass unix:%%SOCK%%; llm_limit zone=fast; llm_queue_timeout 2s; llm_keepalive_interval 100ms;
    }
    location /small/v1/ { llm_pass unix:%%SOCK%%; llm_limit zone=small burst=100 nodelay; }
    location /cached/v1/ {
        llm_pass unix:%%SOCK%%; llm_limit zone=tokens burst=1000 nodelay; llm_limit_cached_discount 75;
    }
    location /budget/v1/ { llm_pass unix:%%SOCK%%; llm_budget $http_budget; }
    location /budgets/v1/ {
        llm_pass unix:%%SOCK%%; llm_budget 500; llm_limit zone=tokens burst=1000 nodelay;
    }
    location /status/v1/ {
        llm_pass unix:%%SOCK%%; llm_limit zone=requests burst=1 nodelay; llm_limit_status 503;
    }
    location /several/v1/ {
        llm_model fake unix:%%SOCK%% unix:LEAVING; llm_limit zone=tokens burst=1000 nodelay;
    }
EOT
$server =~ s/LEAVING/$leaving->socket/e;
my $nginx = $t->nginx(http => $conf, server => $server, workers => 2);
my %key = (key => 'none');

# A request of the current key.
sub ask {
    my ($location, $prompt, %more) = @_;

    return $nginx->post("/$location/v1/completions", { prompt => $prompt, %more },
        headers => {%key});
}

# The same, in flight: its client.
sub begin {
    my ($location, $prompt, %more) = @_;
    my $c = $nginx->client;

    $c->request('POST', "/$location/v1/completions", json => { prompt => $prompt, %more },
        headers => {%key});
    return $c;
}

sub left {
    my ($what, $location) = @_;

    return $nginx->get('/' . ($location // $what) . '/v1/models', headers => {%key})
        ->header("x-ratelimit-remaining-$what");
}

sub wait_left {
    my ($what, $n, $name, $location) = @_;

    ok(wait_until(5, sub { left($what, $location) == $n }), $name)
        or diag(left($what, $location) . " $what left");
}

# The status that the last request of the key was logged with.
sub logged {
    my ($pattern, $name) = @_;

    ok(wait_until(5, sub { slurp("$nginx->{dir}/llm.log") =~ /^$key{key} $pattern/m }), $name)
        or diag(slurp("$nginx->{dir}/llm.log"));
}

# Every worker has its session again.
sub reconnected {
    wait_until(10, sub { $nginx->post('/v1/completions', { prompt => 'tokens=1' });
        $engine->counters->{sessions} == 2 }) or fail('two sessions');
}

# --- requests ---

%key = (key => 'one');
for my $n (2, 1, 0) {
    my $r = ask('requests', 'tokens=1');
    is($r->status, 200, 'within the limit');
    is($r->header('x-ratelimit-limit-requests'), 3, 'the limit');
    is($r->header('x-ratelimit-remaining-requests'), $n, "$n are left");
    like($r->header('x-ratelimit-reset-requests'), qr/^\d+\.\d{3}s$/, 'the time of reset');
}
my $r = ask('requests', 'tokens=1');
is($r->status, 429, 'over it');
my $error = $r->json->{error};
is_deeply([ @$error{qw(type param code)} ], [ 'rate_limit_error', undef, 'rate_limit_exceeded' ],
    'of the right kind');
like($error->{message}, qr/^Rate limit reached for requests: 3 of 3 are in use, 1 asked for/, 'said');
cmp_ok($r->header('Retry-After'), '>', 55, 'Retry-After: after a minute');
cmp_ok($r->header('Retry-After'), '<=', 60, 'no later');
like($r->header('x-ratelimit-reset-requests'), qr/^1[78]\d\./, 'all of them after three');
logged('429 REJECTED', 'and logged');
logged('200 PASSED', 'those before too');
like($nginx->error_log, qr/\[warn\].* limiting requests, 1 asked for, 3 of 3 in use by zone "requests"/,
    'in the error log');
is(ask('requests', 'tokens=1')->status, 429, 'who is refused pays nothing');
is(left('requests'), 0, 'nor gets anything');
{
    my $c = $nginx->client;
    $c->write("POST /requests/v1/completions HTTP/1.1\r\nHost: x\r\nkey: one\r\nContent-Length: 9999\r\n"
        . "Connection: close\r\n\r\n");
    is($c->response->status, 429, 'before the body is read');
}
%key = (key => 'other');
is(ask('requests', 'tokens=1')->status, 200, 'another key has its own');
%key = ();
is(ask('requests', 'tokens=1')->status, 200, "no key: request $_") for 1 .. 5;
is(ask('requests', 'tokens=1')->header('x-ratelimit-limit-requests'), undef, 'no limit, no header');
%key = (key => 'x' x 2000);
is(ask('requests', 'tokens=1')->status, 200, 'a long key') for 1 .. 3;
is(ask('requests', 'tokens=1')->status, 429, 'is one as well');
%key = (key => 'refused');
is(ask('requests', 'x', max_tokens => -1)->status, 400, 'a bad request');
is(left('requests'), 2, 'is one as well');
is(ask('requests', 'x', max_tokens => -1)->header('x-ratelimit-remaining-requests'), 1,
    'errors have the headers too');
is(left('requests'), 1, 'what asks nothing of an engine is not counted');
%key = (key => 'status');
ask('status', 'tokens=1');
$r = ask('status', 'tokens=1');
is($r->status, 503, 'llm_limit_status');
ok($r->header('Retry-After'), 'with Retry-After');

# as limit_req: what was before drains first

%key = (key => 'slow');
my $begin = time;
my @all = map { begin('slow', 'tokens=1') } 1 .. 5;
is($_->response->status, 200, 'delayed') for @all;
cmp_ok(time - $begin, '>', 0.38, 'each a tenth of a second');
cmp_ok(time - $begin, '<', 2, 'not more');
logged('200 DELAYED', 'logged');
like($nginx->error_log, qr/\[notice\].* delaying request by \d+ ms by zone "second"/,
    'in the error log, one level lower');
$begin = time;
$_->close for map { begin('slow', 'tokens=1') } 1 .. 10;
ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), 'who leaves is not delayed');

# whose time has come while it waited for room in the session waits for nobody any more

%key = (key => 'room');
$engine->set('consume=off');
@all = map { begin('slow', 'x' x 3_900_000, max_tokens => 1) } 1 .. 5; # two fit
sleep 0.5;
$engine->set('consume=on');
is_deeply([ map { $_->response->status } @all ], [ (200) x 5 ], 'delayed, and then there was no room');

# --- tokens ---

%key = (key => 'two');
my $released = $engine->counters->{released};
my $c = begin('tokens', 'prompt=100 tokens=50 end=300', max_tokens => 60, stream => \1);
$r = $c->response;
is($r->header('x-ratelimit-limit-tokens'), 1000, 'the limit');
is($r->header('x-ratelimit-remaining-tokens'), 840, 'prompt and completion are held');
is(left('tokens'), 840, 'for all to see');
is($r->finish_reason, 'stop', 'at the end');
wait_left('tokens', 850, 'what it did not use is given back');
is($engine->counters->{released} - $released, 1, 'the engine has waited for that');
$r = ask('tokens', 'prompt=100 tokens=50', n => 2, max_tokens => 100);
is($r->header('x-ratelimit-remaining-tokens'), 650, 'an answer in one piece is settled before it');
$r = ask('tokens', [ 'prompt=10 tokens=7', 'x' ], n => 3, max_tokens => 20);
is($r->header('x-ratelimit-remaining-tokens'), 650 - 10 - 6 * 7, 'choices of several prompts');
$r = ask('tokens', 'prompt=10 tokens=1000', max_tokens => 20);
is($r->finish_reason, 'length', 'as long as it may be');
is($r->header('x-ratelimit-remaining-tokens'), 598 - 30, 'and charged for');
$r = ask('tokens', 'prompt=500 tokens=5', max_tokens => 100);
is($r->status, 429, 'over the limit');
is($r->json->{error}{message}, 'Rate limit reached for tokens: 432 of 1000 are in use, 600 asked for. '
    . 'Please try again in ' . $r->header('Retry-After') . ' s.', 'why');
cmp_ok(abs($r->header('Retry-After') - 32 * 60), '<', 60, 'when');
is($r->header('x-ratelimit-remaining-tokens'), 568, 'it has used nothing');
logged('429 REJECTED', 'logged');
ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), 'the engine has forgotten it');
is(ask('tokens', 'prompt=468 tokens=5', max_tokens => 100)->status, 200, 'to the last token');
is(left('tokens'), 95, 'which it did not use');
is(ask('tokens', 'prompt=90 tokens=5', max_tokens => 5)->status, 200, 'all of them');
is(left('tokens'), 0, 'none is left');
$begin = $engine->counters->{submitted};
$r = ask('tokens', 'prompt=1 tokens=1', max_tokens => 1);
is($r->status, 429, 'where none is left');
is($r->header('Retry-After'), 60, 'there will be one');
is($engine->counters->{submitted}, $begin, 'the engine is not asked');

# what can never fit

%key = (key => 'large');
$r = ask('tokens', 'prompt=900 tokens=5', max_tokens => 101);
is($r->status, 400, 'more than ever fits');
$error = $r->json->{error};
is_deeply([ @$error{qw(type param code)} ],
    [ 'invalid_request_error', 'max_tokens', 'token_limit_exceeded' ], 'of the right kind');
is($error->{message}, 'At most 1000 tokens are allowed at once. However, you requested 1001 tokens (900 in '
    . 'the prompt, 101 in the completion). Please reduce the length of the prompt or completion.', 'said');
logged('400 REJECTED', 'and logged');
is($r->header('Retry-After'), undef, 'no use in coming again');
is(ask('tokens', 'prompt=900 tokens=5', max_tokens => 100)->status, 200, 'what fits');
%key = (key => 'unsaid');
$r = ask('tokens', 'prompt=900 tokens=5000');
is($r->status, 200, 'who does not say how much');
is($r->usage->{completion_tokens}, 100, 'gets what fits');
is($r->finish_reason, 'length', 'and is told');
is(left('tokens'), 0, 'which is all');
%key = (key => 'unsaid too');
$r = ask('tokens', 'prompt=900 tokens=5000', n => 3);
is($r->usage->{completion_tokens}, 99, 'each choice its part');
%key = (key => 'unsaid three');
is(ask('tokens', 'prompt=999 tokens=5', n => 2)->status, 400, 'less than a token each');
is(left('tokens'), 1000, 'costs nothing');

# several limits

%key = (key => 'both', all => 'us');
$r = ask('both', 'prompt=300 tokens=200', max_tokens => 200);
is_deeply([ map { $r->header("x-ratelimit-remaining-$_") } qw(requests tokens) ], [ 9, 500 ],
    'the one that leaves less');
%key = (key => 'both, too', all => 'us');
$r = ask('both', 'prompt=300 tokens=200', max_tokens => 200);
is_deeply([ map { $r->header("x-ratelimit-remaining-$_") } qw(requests tokens) ], [ 9, 500 ],
    'which may be another');
$r = ask('both', 'prompt=300 tokens=200', max_tokens => 200);
is($r->header('x-ratelimit-remaining-tokens'), 0, 'both are used up');
%key = (key => 'both, third', all => 'us');
$begin = left('requests', 'both');
is(ask('both', 'prompt=300 tokens=200', max_tokens => 200)->status, 429, 'one is over');
is(left('requests', 'both'), $begin, 'then the others are not charged');
is(left('tokens', 'tokens'), 1000, 'of tokens neither');
%key = (key => 'both', all => 'them');
is(ask('both', 'prompt=600 tokens=1', max_tokens => 1)->status, 429, 'the other one');
is(left('tokens', 'both'), 500, 'leaves the first alone');
is(left('requests', 'both'), 8, 'a request that gets no token was one');
%key = (key => "both $_", all => 'them'), ask('both', 'prompt=700 tokens=1', max_tokens => 1) for 1, 2;
$key{key} = 'both 3';
is(ask('both', 'prompt=200 tokens=1', max_tokens => 1)->status, 429, 'the second one');
is(left('tokens'), 1000, 'lets go of the first');

%key = (key => 'first', all => 'us');
is(ask('two', 'tokens=1')->status, 200, 'two of requests') for 1, 2;
$key{key} = 'second';
is(ask('two', 'tokens=1')->status, 429, 'one is used up');
is(left('requests'), 3, 'the other is not charged');

# dry runs

%key = (key => 'dry');
$r = ask('dry', 'prompt=60 tokens=20', max_tokens => 20);
is_deeply([ $r->status, $r->header('x-ratelimit-limit-tokens') ], [ 200, undef ], 'dry run');
logged('200 PASSED', 'passed');
is(left('tokens'), 920, 'and charged');
is(ask('dry', 'prompt=60 tokens=20', max_tokens => 20)->status, 200, 'over the limit');
logged('200 REJECTED_DRY_RUN', 'logged');
is(left('tokens'), 920, 'and not charged');
is(ask('dry', 'prompt=6000 tokens=20', max_tokens => 2000)->status, 200, 'over all bounds');
is(ask('dry', 'tokens=1', max_tokens => 1)->status, 200, 'request 3');
like($nginx->error_log, qr/limiting tokens, dry run, 80 asked for, 80 of 100 in use by zone "tokens"/,
    'said');

# tokens that were there already

%key = (key => 'cached');
$r = ask('cached', 'prompt=400 cached=200 tokens=50', max_tokens => 100);
is($r->header('x-ratelimit-remaining-tokens'), 700, 'three quarters of the cached ones are given back');
ask('tokens', 'prompt=400 cached=200 tokens=50', max_tokens => 100);
is(left('tokens'), 250, 'and none where it is not said');
ask('cached', 'prompt=100 cached=100 status=queue_full', max_tokens => 50);
is(left('tokens'), 250, 'nor of what was not read');

# --- a budget of the request's own ---

%key = (key => 'budget', budget => 120);
$r = ask('budget', 'prompt=100 tokens=50', max_tokens => 60, stream => \1);
is($r->text, join(' ', map { "t$_" } 0 .. 19), 'a stream is cut where its budget ends');
is($r->finish_reason, 'length', 'it is told');
is_deeply([ @{ $r->usage }{qw(prompt_tokens completion_tokens total_tokens)} ], [ 100, 20, 120 ],
    'with the usage, for which it did not ask');
ok($r->done, 'and ends well');
logged('200 - 20', 'no limit, no status');
$r = ask('budget', 'prompt=100 tokens=15', stream => \1);
is_deeply([ $r->finish_reason, $r->usage ], [ 'stop', undef ], 'what ends by itself is as ever');
$r = ask('budget', 'prompt=100 tokens=50', n => 3);
is_deeply([ $r->usage->{completion_tokens}, map { $r->finish_reason($_) } 0 .. 2 ],
    [ 18, ('length') x 3 ], 'each choice has its part');
$r = ask('budget', 'prompt=100 tokens=50', max_tokens => 10, stream => \1);
is_deeply([ $r->finish_reason, $r->usage ], [ 'length', undef ], 'what the client says may be less');
$r = ask('budget', 'prompt=120 tokens=1');
is_deeply([ $r->status, $r->json->{error}{code}, $r->header('Retry-After') ],
    [ 429, 'insufficient_quota', undef ], 'the prompt alone is too much');
logged('429 REJECTED', 'logged');
for my $none (0, -7) {
    $key{budget} = $none;
    $begin = $engine->counters->{submitted};
    is(ask('budget', 'prompt=1 tokens=1')->json->{error}{message},
        'The budget of 0 tokens does not suffice for this request.', "a budget of $none");
    is($engine->counters->{submitted}, $begin, 'is enough for no question');
}
$key{budget} = '1e3';
is(ask('budget', 'prompt=1 tokens=1')->status, 500, 'what is no number is no budget');
like($nginx->error_log, qr/\[error\].*the value "1e3" of "llm_budget" is no integer/, 'but an error');
is($nginx->get('/budget/v1/models', headers => {%key})->status, 200, 'of what needs one');
%key = (key => 'no budget');
is(ask('budget', 'prompt=1 tokens=5')->finish_reason, 'stop', 'an empty one is none');
%key = (key => 'budgets');
$c = begin('budgets', 'prompt=100 tokens=900 end=300', stream => \1);
is($c->response->header('x-ratelimit-remaining-tokens'), 500, 'a limit holds no more than the budget');
$c->close;

# --- the end that is not the answer's ---

# a client that leaves pays for what was made, not more

%key = (key => 'leaves');
$c = begin('tokens', 'prompt=100 tokens=1000 every=20', max_tokens => 500, stream => \1);
$r = $c->response;
$r->event for 1 .. 5;
$c->close;
ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), 'cancelled');
logged('499 PASSED|200 PASSED', 'logged');
my $left = left('tokens');
cmp_ok($left, '<=', 900 - 5, 'charged for what was made');
cmp_ok($left, '>=', 900 - 50, 'not for what was not');

%key = (key => 'leaves early');
for my $stage ([ 'before it was counted' => 'counted=60000', 1000 ],
    [ 'in prefill' => 'prompt=100 first=60000', 900 ],
    [ 'before the end' => 'prompt=100 tokens=7 end=60000', 793 ],
    [ 'refused' => 'prompt=100 status=queue_full', 793 ],
    [ 'failed in the middle' => 'prompt=100 tokens=3 status=failed', 690 ]) {
    my ($name, $script, $n) = @$stage;

    $c = begin('tokens', $script, max_tokens => 100);
    if ($script =~ /status/) {
        $c->response;
    } else {
        wait_until(5, sub { $engine->counters->{requests} == 1 });
        sleep 0.05;
        $c->close;
    }
    wait_left('tokens', $n, $name);
}
wait_until(5, sub { $engine->counters->{requests} == 0 });

# what the engine says after CANCEL counts, whoever hears it

%key = (key => 'late');
$c = begin('tokens', 'prompt=100 tokens=1000 every=10 cancel=300', max_tokens => 500, stream => \1);
$c->response->event;
$c->close;
sleep 0.1;
is(left('tokens'), 400, 'held until then');
ok(wait_until(5, sub { left('tokens') > 400 }), 'then not');
cmp_ok(left('tokens'), '<', 900, 'charged');

# an engine that is lost: who has seen nothing has used nothing

%key = (key => 'lost');
$c = begin('tokens', 'prompt=100 first=60000', max_tokens => 500);
wait_until(5, sub { left('tokens') == 400 });
$engine->drop;
is($c->response->status, 503, 'lost');
is(left('tokens'), 1000, 'not charged');
reconnected();
$left = left('tokens');
$c = begin('tokens', 'prompt=100 tokens=3 end=60000', max_tokens => 500, stream => \1);
$r = $c->response;
$r->event for 1 .. 3;
$engine->drop;
$r->events;
is(left('tokens'), $left - 103, 'who has pays for that');
reconnected();

# what one engine sends back to be done by another is charged for once

%key = (key => 'several');
ask('several', 'prompt=100', max_tokens => 50) for 1 .. 6;
is(left('tokens'), 1000 - 6 * 103, 'six requests');
cmp_ok($leaving->counters->{released}, '>', 0, 'some of which went to an engine that had to go');

# an engine that says something before it may is not in its right mind

for my $script ('tokens=1', 'tokens=0') {
    %key = (key => $script);
    is(ask('tokens', "prompt=100 release=off $script", max_tokens => 500)->status, 503, 'too early');
    ok($nginx->wait_log(qr/is not there: a record makes no sense/), 'and out');
    is(left('tokens'), 1000, 'not charged');
    reconnected();
}

# nor is one that says it made more than it was allowed to

%key = (key => 'boasts');
ask('tokens', 'prompt=100 tokens=1 completion=4000000000', max_tokens => 50);
is(left('tokens'), 850, 'charged for all that was held, not for more');

# delays of tokens, from what is held, too

%key = (key => 'smooth');
$begin = time;
$r = ask('smooth', 'prompt=30 tokens=20', max_tokens => 20);
cmp_ok(time - $begin, '<', 0.2, 'the first one');
$r = ask('smooth', 'prompt=1 tokens=1', max_tokens => 1, stream => \1);
$r->text;
cmp_ok(time - $begin, '>', 0.4, 'the second one waits until its tokens are there');
cmp_ok(time - $begin, '<', 1.5, 'no longer');
logged('200 DELAYED', 'logged');
wait_left('tokens', 6000, 'what was used is there again after a while', 'smooth');

# A stream that waits for about a second, of which it is told.
sub delayed {
    ask('smooth', 'prompt=99 tokens=1', max_tokens => 1);
    my $r = begin('smooth', 'prompt=1 tokens=2', max_tokens => 5, stream => \1)->response;

    is($r->event->{comment}, 'keep-alive', 'it is kept alive meanwhile');
    return $r;
}

$key{key} = 'smooth reload';
$r = delayed();
$nginx->reload;
is($r->text, 't0 t1', 'a reload does not end it');
reconnected();
$key{key} = 'smooth lost';
$r = delayed();
$engine->drop;
is($r->api_error->{code}, 'engine_lost', 'the end of its engine does');
reconnected();
$key{key} = 'smooth';
$c = begin('smooth', 'prompt=30 tokens=1 end=60000', max_tokens => 400, stream => \1);
$c->response->event;
$r = ask('smooth', 'prompt=1 tokens=1', max_tokens => 1);
is($r->status, 429, 'who would wait longer than in any queue is told so');
cmp_ok($r->header('Retry-After'), '>=', 4, 'and for how long');
$c->close;
ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), 'nothing left');

# --- a zone that is full: who was seen least lately is forgotten, unless he is there ---

%key = (key => 'held');
ask('small', 'prompt=10 tokens=2', max_tokens => 2);
$c = begin('small', 'prompt=10 tokens=2 end=60000', max_tokens => 20, stream => \1);
$c->response->event;
my @status;
for my $n (1 .. 400) {
    %key = (key => "filler $n");
    $status[ ask('small', 'prompt=10 tokens=1', max_tokens => 1)->status ]++;
}
is($status[200], 400, 'a zone is never too small for one more');
is(left('tokens', 'small'), 89, 'the last one is there');
%key = (key => 'filler 1');
is(left('tokens', 'small'), 100, 'the first one is not');
%key = (key => 'held');
is(left('tokens', 'small'), 58, 'the one that holds something is');
$c->close;
wait_left('tokens', 76, 'to the end', 'small');
my @many = map { $key{key} = "many $_"; begin('small', 'prompt=10 tokens=1 end=60000', max_tokens => 1,
    stream => \1) } 1 .. 300;
@status = ();
$status[ $_->response->status ]++ for @many;
ok($status[200] > 50 && $status[429] && $status[200] + $status[429] == 300, 'who does not fit is refused');
$t->allow(qr/could not allocate node in llm_limit_zone "small"/);
$_->close for @many;
ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), 'all leave');
%key = (key => 'after them');
is(ask('small', 'prompt=10 tokens=1', max_tokens => 1)->status, 200, 'and there is room again');

# nor does he make room for a worker that comes, whose first request is his

for my $n (1 .. 200) {
    %key = (key => "next $n");
    ask('small', 'prompt=10 tokens=1', max_tokens => 1);
}
$c = begin('small', 'prompt=10 tokens=1 end=60000', max_tokens => 1, stream => \1);
$c->response->event;
$nginx->reload;
ok(wait_until(10, sub { $engine->counters->{sessions} == 3 }), 'two new workers, and an old one');
my ($oldest) = grep { $key{key} = "next $_"; left('tokens', 'small') < 100 } 1 .. 200;
cmp_ok($oldest, '>', 1, 'a full zone');
$key{key} = "next $oldest";
ask('small', 'prompt=10 tokens=1', max_tokens => 1);
is(left('tokens', 'small'), 100 - 2 * 11, 'what the oldest entry has used before counts');
$c->close;
wait_until(5, sub { $engine->counters->{requests} == 0 });

# --- workers come and go ---

%key = (key => 'reload');
ask('tokens', 'prompt=100 tokens=50', max_tokens => 60);
ask('requests', 'tokens=1');
$c = begin('tokens', 'prompt=100 tokens=20 every=50', max_tokens => 60, stream => \1);
$c->response->event;
$nginx->reload;
is(left('requests'), 2, 'requests survive a reload');
is(left('tokens'), 1000 - 150 - 160, 'tokens and what is held as well');
wait_left('tokens', 1000 - 150 - 120, 'an old worker settles');

# what a zone counts stays as it is

$t->allow(qr/llm_limit_zone "tokens" (?:uses the|counts)/);
for my $change ([ '$http_other', '1t/m', 'uses the "$http_other" key while previously it used the "$http_key"' ],
    [ '$http_key', '1r/m', 'counts requests while previously it counted tokens' ]) {
    my ($zone, $rate, $said) = @$change;

    $nginx->write_conf($nginx->{expand}->(
        http => $conf =~ s/\S+ zone=tokens:1m rate=1t/$zone zone=tokens:1m rate=$rate/r =~ s{/m/m}{/m}r));
    kill 'HUP', $nginx->master;
    ok($nginx->wait_log(qr/\[emerg\].*llm_limit_zone "tokens" \Q$said/), "$said: refused");
}
$nginx->write_conf($nginx->{expand}->());
is(left('tokens'), 1000 - 150 - 120, 'the old configuration goes on');

# a worker that has to go waits for what its cancelled requests used

%key = (key => 'quit');
$c = begin('tokens', 'prompt=100 tokens=1000 every=10 cancel=700 completion=300', max_tokens => 500,
    stream => \1);
$c->response->event;
my %old = map { $_ => 1 } $nginx->workers;
$c->close;
ok(wait_until(5, sub { $engine->counters->{cancelled} > 0 && left('tokens') == 400 }), 'cancelled');
$nginx->reload;
wait_left('tokens', 600, 'settled from FINISHED');
ok(wait_until(5, sub { !grep { alive($_) } keys %old }), 'and then it goes');

# one that is killed cannot say: what it held is given back, and told

%key = (key => 'killed');
my @streams = map { begin('tokens', 'prompt=100 tokens=2 end=60000', max_tokens => 200, stream => \1) }
    1 .. 3;
$_->response->event for @streams;
is(left('tokens'), 100, 'held');
$t->allow(qr/exited on signal 9/);
kill 'KILL', $nginx->workers;
wait_left('tokens', 1000, 'given back');
my $held = 0;
for ($nginx->error_log =~ /\[warn\].*process \d+ is gone and did not say what (\d+) requests used, given back: (\d+) tokens in zone "tokens"/g) {
    $held += $_;
}
is($held, 903, 'and told: three requests, 900 tokens');

# those that are there are not taken for gone, least of all by themselves

%key = (key => 'there');
my @there = map { begin('tokens', 'prompt=100 tokens=2 end=60000', max_tokens => 200, stream => \1) }
    1 .. 3;
$_->response->event for @there;
sleep 1.1;
is(ask('tokens', 'prompt=100 tokens=1', max_tokens => 1)->status, 429, 'over it') for 1 .. 8;
is(left('tokens'), 100, 'and nobody has given anything back');
$_->close for @there;
wait_left('tokens', 1000 - 3 * 102, 'until it was known');

# an old one that nobody follows

%key = (key => 'old');
$c = begin('tokens', 'prompt=100 tokens=2 end=60000', max_tokens => 900, stream => \1);
$c->response->event;
my @old = $nginx->workers;
$nginx->reload;
is(left('tokens'), 0, 'held by an old worker');
sleep 1.1;
kill 'KILL', @old;
ok(wait_until(5, sub { ask('tokens', 'prompt=1 tokens=1', max_tokens => 1)->status == 200 }),
    'whoever needs it finds out');

# a binary upgrade begins with empty zones, and the old workers go on with theirs

%key = (key => 'upgrade');
ask('tokens', 'prompt=100 tokens=1', max_tokens => 1);
$c = begin('tokens', 'prompt=100 tokens=30 every=50', max_tokens => 50, stream => \1);
$r = $c->response;
$r->event;
$nginx->upgrade;
$nginx->quit_old;
ok(wait_until(5, sub { left('tokens') == 1000 }), 'an upgrade begins anew');
is($r->text, join(' ', map { "t$_" } 0 .. 29), 'and cuts nothing');

$t->finish;
