#!/usr/bin/perl

# Clients that leave, at every stage: the engine is told at once, slots come back, and what it still
# says goes to nobody.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::INET;
use LLM::HTTP2;
use LLM::Test;

my $t = LLM::Test->new;
$t->certificate;
my $engine = $t->fake_engine;
my $nginx = $t->nginx(
    http => <<'EOT',
        log_format llm '$status $llm_finish_reason $llm_completion_tokens $uri';
        access_log llm.log llm;
EOT
    server => <<'EOT',
        listen 127.0.0.1:%%PORT2%% http2;
        listen 127.0.0.1:%%PORT3%% ssl;
        ssl_certificate %%DIR%%/tls.crt;
        ssl_certificate_key %%DIR%%/tls.key;
        location /stay/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; llm_ignore_client_abort on; }
        location /two/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; }
        location /after/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; post_action @silent; }
        location @silent { proxy_pass http://127.0.0.1:%%PORT4%%; }
        location /refused/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; llm_intercept_errors on; error_page 400 = @deaf;
        }
        location @deaf {
            proxy_pass http://127.0.0.1:%%PORT4%%; proxy_ignore_client_abort on; proxy_read_timeout 1s;
        }
EOT
);
my ($worker) = $nginx->workers;

sub logged {
    my ($pattern) = @_;

    return wait_until(5, sub { slurp("$nginx->{dir}/llm.log") =~ $pattern });
}

# A request in flight, its client.
sub ask {
    my ($prompt, %more) = @_;
    my $uri = delete $more{uri} // '/v1/completions';
    my $c = delete $more{client} // $nginx->client;

    $c->request('POST', $uri, json => { prompt => $prompt, %more });
    return $c;
}

# What happens to a client, how long until the engine has nothing left.
sub cancelled {
    my ($name, $leave) = @_;
    my $before = $engine->counters;

    $leave->();
    ok(wait_until(5, sub { $engine->counters->{requests} == 0 }), "$name: nothing left")
        or diag(explain($engine->counters));
    is($engine->counters->{cancelled} - $before->{cancelled}, 1, "$name: cancelled");
}

for my $end (qw(close reset half_close)) {
    for my $stage ([ 'queued' => 'counted=60000' ], [ 'in prefill' => 'first=60000' ],
        [ 'between tokens' => 'tokens=1000 every=30000' ], [ 'before the end' => 'end=60000' ]) {
        my ($name, $script) = @$stage;

        for my $stream (\0, \1) {
            cancelled("$end, $name, stream $$stream", sub {
                my $c = ask($script, stream => $stream);
                wait_until(5, sub { $engine->counters->{requests} == 1 });
                sleep 0.02;
                $c->$end;
            });
        }
    }
}
ok(logged(qr{^499 aborted \d+ /v1/completions}m), 'logged');
cancelled('between the ends of two choices', sub {
    my $r = ask([ 'tokens=1 every=500', 'x' ], uri => '/two/v1/completions', stream => \1)->response;
    my $e;

    do { $e = $r->event } until !$e || $e->{json}{choices}[0]{finish_reason};
    $r->{client}->close;
});
ok(logged(qr{^\d+ aborted \d /two}m), 'the one that has ended is not all');

# a client that writes and leaves at once is noticed, every time: with edges, nobody else tells

my $before = $engine->counters;
my $n = long(100, 500);
for (1 .. $n) {
    my $c = ask('first=60000');
    $_ % 2 ? $c->close : $c->half_close;
}
ok(wait_until(10, sub { $engine->counters->{requests} == 0 }), "$n that leave at once: nothing left");
my $after = $engine->counters;
is($after->{submitted} - $before->{submitted}, $after->{cancelled} - $before->{cancelled},
    'every one that came was cancelled');

# the slot belongs to the engine until it has finished; what comes late is for nobody

my $late = ask('tokens=50 every=10 cancel=never', stream => \1);
$late->response->event;
$late->close;
my $r = $nginx->post('/v1/completions', { prompt => 'tokens=60 every=10', stream => \1 });
is($r->text, join(' ', map { "t$_" } 0 .. 59), 'nobody hears what was meant for another');
ok($engine->idle, 'and the slot comes back in the end');
$before = $engine->counters->{submitted};
for (1 .. 50) {
    my $c = ask('tokens=20 every=1 cancel=never size=100', stream => \1);
    $c->response->event;
    $c->close;
    my $r = $nginx->post('/v1/completions', { prompt => 'tokens=3', stream => \1 });
    $r->text eq 't0 t1 t2' or fail('a text of its own');
}
pass('fifty times');

# TLS and HTTP/2

cancelled('TLS', sub {
    my $c = ask('tokens=1 end=60000', stream => \1,
        client => LLM::Client->new(port => $nginx->{ports}{3}, tls => 1));
    $c->response->event;
    $c->close;
});
my $h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
my $other = $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=40 every=20',
    stream => \1 });
$h2->wait_data($other);
for my $script ('counted=60000', 'first=60000', 'tokens=2 end=60000') {
    $before = $engine->counters->{cancelled};
    my $id = $h2->request('POST', '/v1/completions', json => { prompt => $script, stream => \1 });
    wait_until(5, sub { $engine->counters->{requests} == 2 });
    $h2->reset($id);
    ok(wait_until(5, sub { $engine->counters->{cancelled} == $before + 1 }),
        "HTTP/2: a reset stream is cancelled, $script");
    ok($h2->ping, 'HTTP/2: the connection lives');
}
like($h2->answer($other)->{body}, qr/t39.*\[DONE\]/s, 'HTTP/2: the others go on');
my @ids = map { $h2->request('POST', '/v1/completions', json => { prompt => 'first=60000' }) } 1 .. 20;
wait_until(5, sub { $engine->counters->{requests} == 20 });
$h2->close;
ok($engine->idle, 'HTTP/2: a connection takes its streams with it');

# an engine that ends several streams of one connection in one turn

$h2 = LLM::HTTP2->new(port => $nginx->{ports}{2});
@ids = map { $h2->request('POST', '/v1/completions', json => { prompt => 'tokens=1 end=60000',
    stream => \1 }) } 1 .. 20;
$h2->wait_data($_) for @ids;
$engine->drop;
is(scalar(grep { $h2->answer($_)->{body} =~ /engine_lost/ } @ids), 20, 'HTTP/2: all are told');
$h2->close;
wait_until(5, sub { $nginx->post('/v1/completions', { prompt => 'x' })->status == 200 });

# llm_ignore_client_abort: the answer still comes to one who only stopped writing

my $c = ask('first=200 tokens=2', uri => '/stay/v1/completions', stream => \1);
$c->half_close;
$r = $c->response;
is($r->text, 't0 t1', 'half closed, but answered');
ok($r->done, 'to the end');
$before = $engine->counters;
ask('first=200 tokens=2', uri => '/stay/v1/completions')->close;
ok(wait_until(5, sub { $engine->counters->{finished} == $before->{finished} + 1 }), 'gone, but finished');
is($engine->counters->{cancelled}, $before->{cancelled}, 'not cancelled');
ok(logged(qr{^200 stop 2 /stay}m), 'and logged so');
$before = $engine->counters;
$c = ask('tokens=300 every=1 size=1000', uri => '/stay/v1/completions', stream => \1);
$c->response->event;
$c->reset;
ok(wait_until(5, sub { $engine->counters->{finished} == $before->{finished} + 1 }),
    'gone in the middle of a stream, but finished');
is($engine->counters->{cancelled}, $before->{cancelled}, 'not cancelled');
ok(logged(qr{^200 stop 300 /stay}m), 'and logged so');

# a post_action that takes its time: the engine is told first, and says no more to this request

my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', ReuseAddr => 1,
    LocalPort => $nginx->{ports}{4}) or die "listen: $!";
for my $stream (\0, \1) {
    cancelled("post_action, stream $$stream", sub {
        my $c = ask('first=300', uri => '/after/v1/completions', stream => $stream);
        wait_until(5, sub { $engine->counters->{requests} == 1 });
        $c->close;
    });
}
sleep 0.4;

# an error_page that takes its time: the client is that location's, and no request of ours is left

for my $leave (qw(close reset)) {
    my $c = $nginx->client;
    $c->request('POST', '/refused/v1/completions', json => { prompt => 'x', max_tokens => -1 });
    sleep 0.1;
    $c->$leave;
}
sleep 0.1;
is_deeply([ $nginx->workers ], [$worker], 'who leaves an error_page is not ours');
close $silent;

# while the session is made

$engine->set('accept=silent');
$engine->drop;
wait_until(5, sub { $engine->state->{running} == 0 });
sleep 0.3;
for my $end (qw(close reset)) {
    my @waiting = map { ask('tokens=1') } 1 .. 5;
    sleep 0.1;
    $_->$end for @waiting;
}
sleep 1.2;
$engine->set('accept=normal');
ok(wait_until(5, sub { $nginx->post('/v1/completions', { prompt => 'x' })->status == 200 }),
    'who left while there was no session is forgotten');

# while the body comes, and after the end

for my $piece ('', '{"pro') {
    $c = $nginx->client;
    $c->write("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n$piece");
    sleep 0.05;
    $c->close;
}
$c = ask('tokens=2', stream => \1);
wait_until(5, sub { $engine->counters->{requests} == 0 });
$c->reset;
is($nginx->post('/v1/completions', { prompt => 'tokens=1' })->text, 't0', 'nobody minds');
is(join(' ', $nginx->workers), $worker, 'one worker for all');

$t->finish;
