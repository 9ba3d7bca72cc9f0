#!/usr/bin/perl

# Workers come and go: what is in flight stays, what is over does not hold its worker, and who must
# leave says so.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Process qw(alive children);
use LLM::Test;

my $t = LLM::Test->new;
$t->certificate;
my $engine = $t->fake_engine;

# nginx waits for clients that got their answer to close, but not for long.
sub nginx {
    my (%o) = @_;

    return $t->nginx(%o, http => 'lingering_timeout 100ms; ' . ($o{http} // ''));
}

sub ask {
    my ($nginx, $prompt, %more) = @_;
    my $c = delete $more{client} // $nginx->client(timeout => 20);

    $c->request('POST', delete $more{uri} // '/v1/completions', json => { prompt => $prompt, %more });
    return $c;
}

sub gone {
    my ($pid, $seconds) = @_;

    return wait_until($seconds, sub { !alive($pid) });
}

sub words { join ' ', map { "t$_" } 0 .. $_[0] - 1 }

my %tls = (server => <<'EOT');
        listen 127.0.0.1:%%PORT2%% http2;
        listen 127.0.0.1:%%PORT3%% ssl;
        ssl_certificate %%DIR%%/tls.crt;
        ssl_certificate_key %%DIR%%/tls.key;
EOT

# --- reload: nothing is cut, and the old worker ends when its last request does ---

my $nginx = nginx(%tls);
my ($old) = $nginx->workers;
my %long = (stream => \1);
my @in_flight = (
    [ 'queued', ask($nginx, 'counted=900 tokens=2'), 2 ],
    [ 'in prefill', ask($nginx, 'first=900 tokens=2', %long), 2 ],
    [ 'streaming', ask($nginx, 'tokens=40 every=25', %long), 40 ],
    [ 'in one piece', ask($nginx, 'tokens=40 every=25'), 40 ],
    [ 'over TLS', ask($nginx, 'tokens=40 every=25', %long,
        client => LLM::Client->new(port => $nginx->{ports}{3}, tls => 1, timeout => 20)), 40 ],
);
my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2}, timeout => 20);
my $silent = $h2->request('POST', '/v1/completions', json => { prompt => 'first=900 tokens=2' });
my $said = $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=40 every=25', %long });
ok(wait_until(5, sub { $engine->counters->{requests} == @in_flight + 2 }), 'in flight');
my ($new) = $nginx->reload;
is($nginx->post('/v1/completions', { prompt => 'tokens=2' })->text, 't0 t1', 'the new worker serves');
ok(alive($old), 'the old one stays');
for (@in_flight) {
    my ($name, $c, $n) = @$_;
    my $r = $c->response;
    is($r->text, words($n), "$name: not cut");
    ok($r->complete, "$name: to the end");
}
like($h2->answer($silent)->{body}, qr/t0 t1/, 'HTTP/2, waiting: not cut');
like($h2->answer($said)->{body}, qr/t39.*\[DONE\]/s, 'HTTP/2, streaming: not cut');
$h2->close;
my $start = time;
ok(gone($old, 5), 'then it ends');
ok(time - $start < 2, 'at once') or diag(time - $start);

# --- no timer is left by what is over, in whatever way ---

($old) = $nginx->workers;
my $c = ask($nginx, 'first=60000');
wait_until(5, sub { $engine->counters->{requests} == 1 });
$c->close;
ask($nginx, 'tokens=1 end=50 status=failed', %long)->response->body;
ask($nginx, 'status=queue_full')->response->body;
$nginx->get('/v1/models');
ok($engine->idle, 'nothing in flight');
$nginx->reload;
ok(gone($old, 2), 'a worker without requests ends at once, session or not');

# nor by what the engine keeps, though its worker has an eye on that

($old) = $nginx->workers;
my $cancelled = $engine->counters->{cancelled};
$c = ask($nginx, 'first=60000 cancel=never');
wait_until(5, sub { $engine->counters->{requests} == 1 });
$c->close;
ok(wait_until(5, sub { $engine->counters->{cancelled} == $cancelled + 1 }), 'cancelled and kept');
$nginx->reload;
ok(gone($old, 2), 'a worker that only waits for its engine ends at once');

# --- several generations ---

my @streams;
for (1 .. 3) {
    push @streams, ask($nginx, 'tokens=60 every=20', %long);
    wait_until(5, sub { $engine->counters->{requests} == @streams });
    $nginx->reload;
}
is(scalar(grep { $_->response->text eq words(60) } @streams), 3, 'three reloads, three generations');
ok(wait_until(5, sub { $engine->counters->{sessions} == 1 }), 'one session in the end');

# --- binary upgrade ---

$c = ask($nginx, 'tokens=60 every=20', %long);
wait_until(5, sub { $engine->counters->{requests} == 1 });
$nginx->upgrade;
is($nginx->post('/v1/completions', { prompt => 'tokens=2' })->text, 't0 t1', 'two masters');
$nginx->quit_old;
is($c->response->text, words(60), 'an upgrade cuts nothing');
ok($nginx->quit, 'quit');

# --- a worker that was just started, before its session is made ---

$nginx = nginx(workers => 2);
my $wrong = 0;
for (1 .. long(15, 100)) {
    $nginx->reload;
    for (1 .. 4) {
        my $r = $nginx->post('/v1/completions', { prompt => 'tokens=1' });
        $wrong++ if $r->status != 200 || $r->text ne 't0';
    }
    $wrong++ if $nginx->get('/v1/models')->status != 200;
}
is($wrong, 0, 'requests right after a reload are answered');
ok($nginx->quit, 'quit');

# --- llm_drain_timeout ---

$nginx = nginx(location => 'llm_drain_timeout 500ms; llm_keepalive_interval 0;');
($old) = $nginx->workers;
my $streaming = ask($nginx, 'tokens=3 end=60000', %long);
my $waiting = ask($nginx, 'first=60000', %long);
my $whole = ask($nginx, 'tokens=3 end=60000');
my $short = ask($nginx, 'tokens=10 every=20', %long);
wait_until(5, sub { $engine->counters->{requests} == 4 });
sleep 0.1;
$start = time;
$nginx->reload;
my $r = $streaming->response;
is($r->text, 't0 t1 t2', 'drained: what was said');
is($r->api_error->{code}, 'server_draining', 'drained: an event');
ok(!$r->complete, 'drained: a broken end');
my $took = time - $start;
ok($took > 0.4 && $took < 2, 'drained: after its time') or diag($took);
for my $c ($waiting, $whole) {
    my $r = $c->response;
    is($r->status, 503, 'drained: nothing said yet, a status');
    is($r->json->{error}{code}, 'server_draining', 'drained: its code');
    ok($r->header('Retry-After'), 'drained: Retry-After');
}
ok($short->response->done, 'drained: who is ready in time is not');
ok($engine->idle, 'drained: cancelled');
ok(gone($old, 2), 'drained: the worker is gone');
ok($nginx->quit, 'quit');

# --- worker_shutdown_timeout ---

$nginx = nginx(main => 'worker_shutdown_timeout 1s;', server => <<'EOT');
    location /hard/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; llm_drain_timeout 0; }
EOT
($old) = $nginx->workers;
$streaming = ask($nginx, 'tokens=3 end=60000', %long);
my $hard = ask($nginx, 'tokens=3 end=60000', %long, uri => '/hard/v1/completions');
wait_until(5, sub { $engine->counters->{requests} == 2 });
sleep 0.1;
$start = time;
$nginx->reload;
is($streaming->response->api_error->{code}, 'server_draining', 'said before the core cuts');
ok(!$hard->response->complete, 'or not said, if nobody wants it');
ok(gone($old, 5), 'the worker is gone');
ok(time - $start < 4, 'in time');
ok($engine->idle, 'both cancelled');

# the session outlives that moment: an engine that dies then, or is silent, ends nothing badly

($old) = $nginx->workers;
$streaming = ask($nginx, 'tokens=3 end=60000', %long);
wait_until(5, sub { $engine->counters->{requests} == 1 });
$nginx->reload;
sleep 0.3;
$engine->drop;
is($streaming->response->api_error->{code}, 'engine_lost', 'an exiting worker loses its engine');
ok(gone($old, 5), 'and ends');
ok($nginx->quit, 'quit');

# --- QUIT, with a stream ---

$nginx = nginx();
wait_until(5, sub { $nginx->get('/v1/models')->status == 200 });
$c = ask($nginx, 'tokens=30 every=20', %long);
wait_until(5, sub { $engine->counters->{requests} == 1 });
kill 'QUIT', $nginx->master;
is($c->response->text, words(30), 'QUIT lets it end');
ok($nginx->quit, 'and then nginx');

# --- processes that serve nothing have no session, nor has a master ---

$nginx = nginx(workers => 3,
    http => 'proxy_cache_path %%DIR%%/cache keys_zone=c:1m loader_sleep=1s;');
ok(wait_until(5, sub { $engine->counters->{sessions} == 3 }), 'one session for each worker');
sleep 0.3;
my @children = children($nginx->master);
ok(@children > 3, 'beside the cache manager');
is($engine->counters->{sessions}, 3, 'no more');
ok($nginx->quit, 'quit');

# --- one process, no master ---

$nginx = nginx(single => 1);
is($nginx->post('/v1/completions', { prompt => 'tokens=2', stream => \1 })->text, 't0 t1',
    'master_process off');
$c = ask($nginx, 'tokens=30 every=10', %long);
$c->response->event;
ok($nginx->quit, 'quit');

# --- a worker that is killed ---

$nginx = nginx(workers => 2);
$t->allow(qr/exited on signal 9/);
my @victims = map { ask($nginx, 'first=60000') } 1 .. 6;
wait_until(5, sub { $engine->counters->{requests} == 6 });
kill 'KILL', $nginx->workers;
ok($engine->idle, 'its requests end with it');
ok(wait_until(5, sub { $nginx->post('/v1/completions', { prompt => 'tokens=1' })->status == 200 }),
    'and another one serves');

$t->finish;
