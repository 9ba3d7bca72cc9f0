#!/usr/bin/perl

# While a thread parses a large body: what happens to its request in the meantime waits for it, and
# so does a worker that is to end.

use strict;
use warnings;

use lib 't/lib';
use LLM::HTTP2;
use LLM::Process qw(alive);
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my $hold = $t->dir . '/hold';
my $preload = $t->dir . '/hold_parse.so';

symlink "$t->{build}/t/hold_parse.so", $preload or die "$preload: $!";
my $nginx = $t->nginx(
    preload => $preload, env => { LLM_HOLD_PARSE => $hold },
    main => 'thread_pool default threads=4; worker_shutdown_timeout 1s;',
    http => <<'EOT',
        client_body_buffer_size 1m;
        lingering_timeout 100ms;
        log_format llm '$status $uri';
        access_log llm.log llm;
EOT
    server => <<'EOT');
        listen 127.0.0.1:%%PORT2%% http2;
        listen 127.0.0.1:%%PORT3%% sndbuf=16k;
        llm_tenant test;
        location /short/v1/ {
            llm_pass unix:%%SOCK%%; llm_timeout 100ms;
            llm_intercept_errors on; error_page 503 @seen;
        }
        location /after/v1/ { llm_pass unix:%%SOCK%%; post_action @seen; }
        location @seen {
            rewrite ^ /seen break;
            proxy_pass http://127.0.0.1:%%PORT%%; proxy_ignore_client_abort on;
        }
        location = /seen { return 200 "seen"; access_log seen.log; }
EOT
my ($worker) = $nginx->workers;

# A body for a thread. The fake engine obeys the words that are not commas.
sub large {
    my ($words) = @_;

    return qq({"stream": true, "prompt": "$words) . ' ,' x 50_000 . '"}';
}

sub hold { $t->file('hold', '') }
sub release { unlink $hold }

# Sends the body, and comes back when a thread has it.
sub ask {
    my ($uri, %o) = @_;
    my $c = $o{client} // $nginx->client;

    $c->request('POST', $uri, body => large($o{prompt} // 'tokens=3'), keepalive => 1);
    sleep 0.2;
    return $c;
}

sub submitted { $engine->counters->{submitted} }

# How often this stands in a log.
sub logged {
    my ($name, $what) = @_;

    return scalar(() = slurp("$nginx->{dir}/$name") =~ /$what/g);
}

# others go on

hold();
my $c = ask('/v1/completions');
is($nginx->post('/v1/completions', { prompt => 'tokens=2' })->text, 't0 t1', 'others go on');
is(submitted(), 1, 'and this one has not been submitted');
release();
is($c->response->text, 't0 t1 t2', 'until it is parsed');

# its time passes: nobody else may have the request as long as the thread has it

hold();
$c = ask('/short/v1/completions', prompt => 'first=60000');
sleep 1;
is(logged('seen.log', '/seen'), 0, 'a request whose time is over is not handed on');
release();
is($c->response->body, 'seen', 'but then');

# its connection can be written to: it was full once, so each event of it tells that, too

hold();
$c = LLM::Client->new(port => $nginx->{ports}{3}, rcvbuf => 4096);
$c->request('POST', '/v1/completions', keepalive => 1,
    json => { prompt => 'tokens=100 size=5000', stream => \1 });
sleep 0.5;
ok($c->response->done, 'a client that did not read at first');
my $before = submitted();
ask('/v1/completions', client => $c);
$c->write("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
ok(!$c->fill(0.3), 'nothing is answered before it is parsed');
is(submitted(), $before, 'nor submitted');
release();
is($c->response->text, 't0 t1 t2', 'but then');
is($c->response->status, 200, 'and the request behind it');

# its client leaves

for my $case ([ '/v1/completions', 'llm.log', '499 /v1/completions' ],
    [ '/after/v1/completions', 'seen.log', '/seen' ]) {
    my ($uri, @what) = @$case;

    for my $end (qw(close reset half_close)) {
        my $n = logged(@what);

        $before = submitted();
        hold();
        $c = ask($uri);
        $c->$end;
        sleep 0.2;
        is(logged(@what), $n, "$uri, $end: nothing follows before it is parsed");
        release();
        ok(wait_until(5, sub { logged(@what) == $n + 1 }), "$uri, $end: but then");
        is(submitted(), $before, "$uri, $end: is not submitted any more");
        is($nginx->post('/v1/completions', { prompt => 'tokens=1' })->text, 't0',
            "$uri, $end: others go on");
    }
}
hold();
my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
$before = submitted();
my $id = $h2->request('POST', '/v1/completions', body => large('tokens=3'));
sleep 0.2;
$h2->reset($id);
ok($h2->ping, 'HTTP/2: a stream is reset');
release();
is($h2->answer($h2->request('POST', '/v1/completions', body => '{"prompt":"x"}'))->{status}, 200,
    'HTTP/2: the others');
is(submitted(), $before + 1, 'HTTP/2: is not submitted any more');
$h2->close;
is(join(' ', $nginx->workers), $worker, 'still the same worker');

# its worker is to end

hold();
$c = ask('/v1/completions');
$nginx->reload;
sleep 0.3;
ok(alive($worker), 'a worker does not end while a thread has a request');
release();
is($c->response->text, 't0 t1 t2', 'and answers it');
ok(wait_until(5, sub { !alive($worker) }), 'then it does');

# worker_shutdown_timeout ends the request, but not the thread: it would be an alert

($worker) = $nginx->workers;
hold();
$c = ask('/v1/completions');
$nginx->reload;
sleep 1.3;
is($c->fill(0.1), undef, 'not before the thread has let go of it, whatever time it is');
release();
is($c->response->status, 0, 'but then');
ok(wait_until(5, sub { !alive($worker) }), 'and the worker ends');

$t->finish;
