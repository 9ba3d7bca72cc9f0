#!/usr/bin/perl

# A key that a reload takes away: what it has running ends, also in workers of older configurations,
# and nothing of it starts any more.

use strict;
use warnings;

use lib 't/lib';
use LLM::Key;
use LLM::Process qw(alive);
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine;
my %k = map { $_ => LLM::Key->new(id => $_, tenant => 'acme') } qw(a b c d);

sub keys_are {
    my ($name, @lines) = @_;

    $t->file("$name.keys", join '', map { ref $_ ? $_->line : $_ } @lines);
}

keys_are(one => @k{qw(a b)});
keys_are(two => $k{c});
my %conf = (
    workers => 2,
    http => 'lingering_timeout 100ms;',
    pass => 'llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/one.keys;',
    server => 'location /two/v1/ { llm_pass unix:%%SOCK%%; llm_keys %%DIR%%/two.keys; }',
);
my $nginx = $t->nginx(%conf);

# Sends a request that goes on for long, as far as it is let.
sub ask {
    my ($key, $prompt, %o) = @_;
    my $c = $nginx->client(timeout => 10);

    $c->request('POST', ($o{uri} // '') . '/v1/completions', headers => $key->bearer,
        json => { prompt => $prompt, $o{whole} ? () : (stream => \1) });
    return $c;
}

my $stream = 'tokens=4000 every=10';
my $soon = 3; # seconds; it is to be one, but this is no benchmark (t/bench/keys.pl)

# An answer that has begun, so that the engine has the request.
sub stream {
    my ($key, %o) = @_;
    my $r = ask($key, $stream, %o)->response;

    $r->event;
    return $r;
}

# Sends all but the end of a request.
sub half {
    my ($key) = @_;
    my $c = $nginx->client(timeout => 10);
    my $bytes = $c->request_bytes('POST', '/v1/completions', headers => $key->bearer,
        json => { prompt => 'tokens=1' });

    $c->write(substr $bytes, 0, -5);
    return [ $c, substr $bytes, -5 ];
}

sub other_half {
    my ($half) = @_;

    $half->[0]->write($half->[1]);
    return $half->[0]->response;
}

my $asked;
sub reload {
    my (%o) = @_;

    $asked = time;
    return $nginx->reload(%o);
}

sub ended {
    my ($what, $r) = @_;
    my $error = $r->api_error;
    my $took = time - $asked;

    is($error && $error->{message}, 'The key was revoked', "$what: ends, and says why");
    is($error && $error->{code}, 'invalid_api_key', "$what: its code");
    ok(!$r->complete, "$what: with a broken end");
    cmp_ok($took, '<', $soon, "$what: soon");
}

sub refused {
    my ($what, $r) = @_;

    is($r->status, 401, "$what: 401");
    is($r->json->{error}{message}, 'The key was revoked', "$what: says why");
}

sub goes_on {
    my ($what, @streams) = @_;

    for my $r (@streams) {
        $r->event for 1 .. 5;
        my $event = $r->event;
        ok($event && $event->{json}{choices}, "$what goes on");
        $r->{client}->close;
    }
}

sub submitted { $engine->counters->{submitted} }

# --- one reload ---

my $running = stream($k{a});
my $waiting = ask($k{a}, 'first=60000');
my $whole = ask($k{a}, $stream, whole => 1);
my $counting = ask($k{a}, 'counted=60000');
my $other = stream($k{b});
my $elsewhere = stream($k{c}, uri => '/two');
wait_until(5, sub { $engine->counters->{requests} == 6 });
my $half = half($k{a});
my $other_half = half($k{b});
sleep 0.1;

keys_are(one => $k{b});
reload();
ended('a stream', $running);
refused('what waits for its first token', $waiting->response);
refused('what is not streamed', $whole->response);
refused('what is not counted yet', $counting->response);
cmp_ok(time - $asked, '<', $soon, 'all of it soon');
my $before = submitted();
refused('what is still being read', other_half($half));
is(submitted(), $before, 'never gets to the engine');
is(other_half($other_half)->status, 200, "what is read with another key does");
is($nginx->post('/v1/completions', { prompt => 'x' }, headers => $k{a}->bearer)->status, 401,
    'nor does anything new');
goes_on("another key's", $other);
goes_on("another file's", $elsewhere);
ok($nginx->wait_log(qr/\[notice\].*llm keys revoked: 1$/m), 'the log says how many');

# --- workers of several configurations ---

keys_are(one => @k{qw(a b d)});
reload();
sleep 0.3;
my @running = map { stream($k{a}), stream($k{b}), stream($k{d}) } 1 .. 2;
my @halves = map { half($_) } @k{qw(a d)};
sleep 0.1;
reload();
sleep 0.3;
push @running, map { stream($k{a}), stream($k{b}), stream($k{d}) } 1 .. 2;
push @halves, map { half($_) } @k{qw(a d)};
sleep 0.1;
keys_are(one => @k{qw(b d)});
reload();
ended('a stream of an older worker', $running[$_]) for 0, 3, 6, 9;
$before = submitted();
refused('a request of an older worker', other_half($halves[$_])) for 0, 2;
is(submitted(), $before, 'is not submitted');
keys_are(one => @k{qw(a b)});
reload();
ended('one more reload: a stream', $running[$_]) for 2, 5, 8, 11;
refused('one more reload: a request', other_half($halves[$_])) for 1, 3;
goes_on("another key's, all the time", @running[ 1, 4, 7, 10 ]);

# given back

ok(wait_until(5, sub {
    my $r = ask($k{a}, 'tokens=2', whole => 1)->response;
    return $r->status == 200;
}), 'a key that is there again is good again');

# --- what counts as taken away ---

sub changed {
    my ($what, $ends, $key, @now) = @_;

    sleep 0.2;
    my $r = stream($key);
    keys_are(one => @now);
    reload();
    $ends ? ended($what, $r) : goes_on($what, $r);
}

my $as = sub { LLM::Key->new(%{ $k{a} }, secret => 'a' x 32, @_) };
my $now = $as->();
keys_are(one => $now);
reload();
sleep 0.3;
changed('with other settings', 0, $now, $as->(settings => 'weight=3 models=none'));
keys_are(one => $now);
reload();
sleep 0.3;
changed('by another name', 0, $now, $as->(id => 'new'));
changed('with a comment', 0, $now, "# note\n", $as->(settings => '# note'));
changed('with an end that is far', 0, $now, $as->(settings => 'expires=2999-01-01'));
changed("another tenant's", 1, $now, $as->(tenant => 'acme2'));
changed('expired', 1, $now, $as->(tenant => 'acme2', settings => 'expires=2020-01-01'));
keys_are(one => $now);
reload();
sleep 0.3;
keys_are(two => @k{qw(c)}, $now);
changed('in another file', 0, $now, $k{b});
keys_are(two => $k{c});
keys_are(one => $now);
reload();
sleep 0.3;
changed('not there at all', 1, $now, '');

# --- a reload that fails takes nothing away ---

keys_are(one => $now);
reload();
sleep 0.3;
$running = stream($now);
$half = half($now);
sleep 0.1;
keys_are(one => $k{b});
$t->allow(qr/bind\(\) to|still could not bind/);
my $held = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1:0') or die "listen: $!";
$nginx->write_conf($nginx->{expand}->(server => 'listen 127.0.0.1:' . $held->sockport . ';'));
kill 'HUP', $nginx->master;
ok($nginx->wait_log(qr/still could not bind/), 'a reload that fails when all was read');
is(other_half($half)->status, 200, 'a request with a key that it would have revoked');
is(ask($now, 'tokens=1', whole => 1)->response->status, 200, 'and a new one');
goes_on('its stream', $running);
$nginx->write_conf($nginx->{expand}->());
keys_are(one => $now);
reload();
sleep 0.3;

# --- no keys any more ---

$running = stream($now);
reload(pass => 'llm_pass unix:%%SOCK%%; llm_tenant all;');
ended('without llm_keys', $running);
reload(%conf);
sleep 0.3;

# --- an engine that no location names any more ---

$running = stream($now);
keys_are(one => $k{b});
reload(pass => 'llm_pass unix:%%DIR%%/none.sock; llm_keys %%DIR%%/one.keys;', server => '');
ended('whose engine is not known any more', $running);
keys_are(one => $now);
reload(%conf);
sleep 0.3;
$running = stream($now);
reload();
sleep 0.3;
keys_are(one => $k{b});
reload(pass => 'llm_pass unix:%%DIR%%/none.sock; llm_keys %%DIR%%/one.keys;', server => '');
ended('not even by an older worker', $running);

# --- more than there is room for ---

my @many = map { LLM::Key->new } 1 .. 5000;
keys_are(one => $now, @many);
reload(%conf);
sleep 0.5;
@running = map { stream($_) } @many[ 0, 2500, 4999 ], $now;
@halves = map { half($_) } $many[1], $now;
sleep 0.1;
keys_are(one => $now);
reload();
ended('one of many', $running[$_]) for 0 .. 2;
$before = submitted();
for (@halves) {
    my $r = other_half($_);
    is($r->status, 503, 'a worker that cannot know any more: 503');
    is($r->json->{error}{code}, 'server_draining', 'its code');
}
is(submitted(), $before, 'nothing is submitted');
goes_on('the last key', $running[3]);
ok(wait_until(5, sub { ask($now, 'tokens=1', whole => 1)->response->status == 200 }),
    'a new worker knows it');

# --- in the middle of much ---

for my $round (1 .. long(4, 40)) {
    keys_are(one => @k{qw(a b)});
    reload();
    sleep 0.3;
    my @asked = map { ask($k{a}, $stream) } 1 .. 30;
    keys_are(one => $k{b});
    reload();
    push @asked, map { ask($k{a}, $stream) } 1 .. 10;
    my @left = grep {
        my $r = $_->response;
        !($r->status == 401 || ($r->status == 200 && $r->api_error))
    } @asked;
    is(scalar(@left), 0, "round $round: all end");
    cmp_ok(time - $asked, '<', $soon, "round $round: soon");
    ok($engine->idle(2), "round $round: the engine has nothing left of it");
}

# --- the engine itself ---

my $real = $t->engine(args => [ '--threads', 2 ]);
$nginx->write_conf($nginx->{expand}->(engine => $real));
keys_are(one => @k{qw(a b)});
reload();
sleep 0.5;

sub long_stream {
    my ($key) = @_;
    my $c = $nginx->client(timeout => 20);

    $c->request('POST', '/v1/completions', headers => $key->bearer, json => { prompt => 'Once',
        stream => \1, max_tokens => 1500, ignore_eos => \1, temperature => 0 });
    my $r = $c->response;
    $r->event;
    return $r;
}

@running = map { long_stream($_) } @k{qw(a b a)};
reload();
sleep 0.3;
push @running, long_stream($k{a});
keys_are(one => $k{b});
reload();
ended('the engine: a stream', $running[$_]) for 0, 2, 3;
goes_on("the engine: another key's", $running[1]);
ok($real->idle, 'the engine: nothing is left');

unlike(slurp("$nginx->{dir}/error.log"), qr/sk-llm-/, 'no key in the log');

$t->finish;
