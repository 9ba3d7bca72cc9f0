#!/usr/bin/perl

# llm_status and llm_status_zone: what is counted, for whom, how it is shown and who may see it.

use strict;
use warnings;

use lib 't/lib';
use Encode qw(decode);
use LLM::Metrics;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(script => 'prompt=7 cached=4');
my $second = $t->fake_engine(script => 'prompt=7 cached=4');
my ($one, $two) = map { 'unix:' . $_->socket } $engine, $second;
my $http = <<'EOT';
        llm_status_zone llm:32k;
        limit_req_zone $http_x_limited zone=z:1m rate=1r/m;
        llm_limit_zone $llm_tenant zone=once:1m rate=1r/m;
EOT
my $server = <<"EOT";
        llm_tenant \$http_x_tenant;
        send_timeout 1s;
        location = /metrics { llm_status prometheus; allow 127.0.0.1; deny all; }
        location = /status { llm_status json; }
        location = /closed { llm_status json; deny all; }
        location = /health { llm_pass unix:%%SOCK%%; }
        location /two/v1/ { llm_pass $two; }
        location /nobody/v1/ { llm_pass unix:%%DIR%%/nobody.sock; }
        location /bytes/v1/ { llm_pass unix:bytes-\xff-\xc3\xab.sock; }
        location /limited/v1/ { llm_pass unix:%%SOCK%%; limit_req zone=z; limit_req_status 429; }
        location /once/v1/ { llm_pass unix:%%SOCK%%; llm_limit zone=once nodelay; llm_limit_status 503; }
        location /denied/v1/ { llm_pass unix:%%SOCK%%; deny all; }
        location /page/v1/ { llm_pass unix:%%SOCK%%; llm_intercept_errors on; error_page 503 = \@page; }
        location \@page { return 200 "page"; }
        location /next/v1/ { llm_pass unix:%%SOCK%%; llm_intercept_errors on; error_page 503 = \@next; }
        location \@next { llm_pass $two; }
        location /plain { return 200 "plain"; }
        location /itself/v1/ { llm_pass unix:%%SOCK%%; return 204; }
EOT
my $nginx = $t->nginx(http => $http, server => $server, pass => 'llm_pass unix:%%SOCK%%;',
    workers => 2);

sub metrics { return LLM::Metrics->new($nginx->get('/metrics')->body) }

sub ask {
    my ($prompt, %more) = @_;
    my $uri = (delete $more{at} // '') . '/v1/completions';
    my $tenant = delete $more{tenant} // 'acme';
    my $limited = delete $more{limited};

    return $nginx->client->post($uri, { prompt => $prompt, %more }, headers => {
        'X-Tenant' => $tenant, $limited ? ('X-Limited' => $limited) : () });
}

# --- the answer itself ---

my $r = $nginx->get('/metrics');
is($r->status, 200, 'metrics');
is($r->header('content-type'), 'text/plain; version=0.0.4; charset=utf-8', 'of their type');
is(length $r->body, $r->header('content-length'), 'whole');
my $m = LLM::Metrics->new($r->body);
is_deeply([ $m->wrong ], [], 'nothing is wrong with them');
is($m->value('llm_requests_total', outcome => 'ok'), 0, 'nothing has happened');
like($r->body, qr/^llm_build_info\{version="[\d.]+",nginx="[\d.]+"\} 1$/m, 'build');
$r = $nginx->get('/status');
is($r->header('content-type'), 'application/json', 'JSON');
is($r->json->{requests}{ok}, 0, 'says the same');
my $c = $nginx->client;
$c->request('HEAD', '/metrics');
$r = $c->response;
is($r->status, 200, 'HEAD');
ok($r->header('content-length') > 1000 && $c->closed(2), 'has no body');
for my $method (qw(POST PUT DELETE OPTIONS)) {
    $c = $nginx->client;
    $c->request($method, '/metrics');
    is($c->response->status, 405, "$method is none of its methods");
}
is($nginx->get('/closed')->status, 403, 'allow and deny guard it');
$r = $nginx->get('/metrics', headers => { 'If-Modified-Since' => 'Thu, 01 Jan 2099 00:00:00 GMT' });
is($r->status, 200, 'it is no file');

# --- by outcome ---

# What was counted since, once nothing is left to be counted: { ok => 1 }.
my $before = metrics();
my $n_before = 0;

sub outcomes {
    my ($n) = @_;
    my ($now, %more);

    wait_until(5, sub {
        $now = metrics();
        return $now->sum('llm_requests_total') >= $n_before + $n;
    });
    for my $outcome (qw(ok aborted invalid denied limited unavailable failed)) {
        my $more = $now->value('llm_requests_total', outcome => $outcome)
            - $before->value('llm_requests_total', outcome => $outcome);
        $more{$outcome} = $more if $more;
    }
    is($now->sum('llm_tenant_requests_total'), $now->sum('llm_requests_total'), 'each has its tenant');
    $before = $now;
    $n_before = $now->sum('llm_requests_total');
    return \%more;
}

sub counted {
    my ($name, $outcome, @request) = @_;

    ask(@request)->body; # and the client goes: nginx logs when the connection is closed
    is_deeply(outcomes(1), { $outcome => 1 }, "$name: $outcome");
}

counted('an answer', 'ok', 'tokens=3');
counted('a stream', 'ok', 'tokens=3', stream => \1);
counted('one that is cut', 'ok', 'tokens=3', max_tokens => 1);
counted('a wrong parameter', 'invalid', 'x', max_tokens => -1);
counted('no such model', 'invalid', 'x', model => 'what');
counted('a long prompt', 'invalid', 'status=context_length');
counted('too large', 'invalid', 'x' x 1_100_000);
counted('no tenant', 'denied', 'x', tenant => '');
counted('a revoked key', 'denied', 'status=revoked');
counted('denied by nginx', 'denied', 'x', at => '/denied');
counted('its part of the queue is full', 'limited', 'status=tenant_full');
counted('within a limit of nginx', 'ok', 'x', at => '/limited', limited => 1);
counted('over it', 'limited', 'x', at => '/limited', limited => 1);
counted('within a limit of ours', 'ok', 'x', at => '/once', tenant => 'once');
counted('over it, with another status', 'limited', 'x', at => '/once', tenant => 'once');
is($before->value('llm_limit_requests_total', status => 'passed'), 1, 'the limit let one pass');
is($before->value('llm_limit_requests_total', status => 'rejected'), 1, 'and refused one');
is_deeply($nginx->get('/status')->json->{limit_requests}, { passed => 1, rejected => 1,
    map { $_ => 0 } qw(delayed delayed_dry_run rejected_dry_run) }, 'JSON says the same');
counted('a full queue', 'unavailable', 'status=queue_full');
counted('a deadline', 'unavailable', 'status=timeout_queue');
counted('no engine', 'unavailable', 'x', at => '/nobody');
counted('an engine that fails', 'failed', 'status=failed');
counted('in a stream', 'failed', 'tokens=2 end=50 status=failed', stream => \1);
counted('full in a stream', 'unavailable', 'tokens=2 end=50 status=queue_full', stream => \1);
counted('a page that looks well', 'unavailable', 'status=queue_full', at => '/page');
$engine->set('state=draining');
counted('the next one', 'ok', 'tokens=3', at => '/next');
$engine->set('state=ready');
for my $stream (\0, \1) {
    $c = $nginx->client;
    $c->request('POST', '/v1/completions', headers => { 'X-Tenant' => 'acme' },
        json => { prompt => 'tokens=2 every=60000', stream => $stream });
    wait_until(5, sub { $engine->counters->{requests} == 1 });
    sleep 0.05;
    $c->close;
    is_deeply(outcomes(1), { aborted => 1 }, 'a client that leaves: aborted');
}
$nginx->get($_)->body for '/health', '/plain', '/itself/v1/models', '/v1/models', '/metrics', '/status';
counted('what asks nothing of a model', 'ok', 'tokens=1');

# --- tokens, by tenant ---

sub usage {
    my ($tenant) = @_;
    my $m = metrics();

    return [ map { $m->value("llm_${_}_total", tenant => $tenant) }
        qw(tenant_requests prompt_tokens cached_tokens completion_tokens) ];
}

sub settle { outcomes($_[0]) }

ask('prompt=10 cached=5 tokens=6', tenant => 'b')->body;
ask('prompt=1 cached=0 tokens=2', tenant => 'b', stream => \1)->body;
ask('status=queue_full prompt=100', tenant => 'b')->body;
settle(3);
is_deeply(usage('b'), [ 3, 11, 5, 8 ], 'what was read and said, not what was refused');
is_deeply($nginx->get('/status')->json->{tenants}{b}, { requests => 3, prompt_tokens => 11,
    cached_tokens => 5, completion_tokens => 8 }, 'JSON says the same');
$c = $nginx->client;
$c->request('POST', '/v1/completions', headers => { 'X-Tenant' => 'c' },
    json => { prompt => 'prompt=9 cached=1 tokens=3 every=1 end=60000', stream => \1, n => 2 });
my $stream = $c->response;
wait_until(5, sub { ($stream->event(0.2) // return 1) && 0 });
$c->close;
settle(1);
is_deeply(usage('c'), [ 1, 9, 1, 6 ], 'and all that an aborted stream had been told');
my $other = usage('other');
ask('tokens=1', tenant => $_)->body for "\xff", 'other', "a\xed\xa0\x80";
settle(3);
is(usage('other')->[0], $other->[0] + 3, 'what can be no label is another\'s');
for my $tenant ('"', '\\', 'a"b\\c', "Zo\xc3\xab", 'x' x 255) {
    ask('tokens=1', tenant => $tenant)->body;
    settle(1);
    is_deeply(usage($tenant), [ 1, 7, 4, 1 ], 'a tenant of strange letters');
    is($nginx->get('/status')->json->{tenants}{ decode('UTF-8', $tenant) }{completion_tokens}, 1,
        'in JSON, too');
}
is_deeply([ metrics()->wrong ], [], 'still nothing is wrong');
unlike($nginx->get('/metrics')->body, qr/tokens=\d|prompt=\d/, 'no prompt is shown');

# --- time ---

$before = metrics();
$n_before = $before->sum('llm_requests_total');
$m = $before;
ask('first=300 tokens=3 every=1000')->body;
settle(1);

sub more {
    my ($metric, %labels) = @_;

    return $before->value($metric, %labels) - $m->value($metric, %labels);
}

for my $case ([ first_token => '0.25', '2.5' ], [ token => '0.25', '2.5' ]) {
    my ($what, $over, $under) = @$case;
    my $sum = more("llm_${what}_seconds_sum");

    is(more("llm_${what}_seconds_count"), 1, "$what: one more");
    is(more("llm_${what}_seconds_bucket", le => $over), 0, "$what: more than $over");
    is(more("llm_${what}_seconds_bucket", le => $under), 1, "$what: and less than $under");
    ok($sum > $over && $sum < $under, "$what: in the sum, too") or diag($sum);
}
is(more('llm_queue_seconds_count'), 1, 'queue: one more');

# --- two workers, a reload, a worker that dies ---

# Waits until there are two workers, none of those.
sub two_others {
    my %old = map { $_ => 1 } @_;

    ok(wait_until(10, sub {
        my @workers = $nginx->workers;
        return @workers == 2 && !grep { $old{$_} } @workers;
    }), 'two workers');
}

my $n = long(40, 400);
my @old = $nginx->workers;
for (1 .. $n) {
    ask('tokens=1', tenant => 'many')->body;
    $nginx->reload if $_ == $n / 2;
}
settle($n);
is_deeply(usage('many'), [ $n, 7 * $n, 4 * $n, $n ], 'what was before a reload counts');
two_others(@old);
$t->allow(qr/exited on signal 9/);
my ($dead) = $nginx->workers;
kill 'KILL', $dead;
two_others($dead);
is(usage('many')->[0], $n, 'and what was before a worker died');

# --- more tenants than there is room for ---

my $sum = metrics()->sum('llm_completion_tokens_total');
my $all = long(400, 4000);
$c = $nginx->client;
for (1 .. $all) {
    my $r = $c->post('/v1/completions', { prompt => 'tokens=1' }, keepalive => 1,
        headers => { 'X-Tenant' => "tenant-$_" });
    $r->complete or die "tenant $_: no answer";
}
$c->close;
settle($all);
my $full = metrics();
is_deeply([ $full->wrong ], [], 'a full zone');
my $lines = $full->lines('llm_completion_tokens_total');
ok($lines > 20 && $lines < $all - 100, 'shows some of them') or diag($lines);
is($full->sum('llm_completion_tokens_total'), $sum + $all, 'and counts all');
ok($full->value('llm_completion_tokens_total', tenant => "tenant-$all"), 'the last one is there');
is($full->value('llm_completion_tokens_total', tenant => 'many'), undef, 'the oldest are not');
ok($full->value('llm_completion_tokens_total', tenant => 'other') >= $n, 'but are among the others');
ask('tokens=1', tenant => 'many')->body;
settle(1);
is_deeply(usage('many'), [ 1, 7, 4, 1 ], 'one who comes back begins anew');
is(metrics()->sum('llm_completion_tokens_total'), $sum + $all + 1, 'and nothing is counted twice');
unlike($nginx->error_log, qr/ngx_slab_alloc|no memory/, 'nobody complains');

# --- engines ---

$m = metrics();
is($m->value('llm_engine_up', engine => $one), 1, 'an engine');
is($m->value('llm_engine_state', engine => $one, state => 'ready'), 1, 'and what it does');
is($m->value('llm_engine_pages', engine => $one), 100_000, 'its pages');
is($m->lines('llm_engine_redis_misses_total'), 0, 'no Redis');
is($m->value('llm_engine_redis_breaker', engine => $one, state => 'none'), 1, 'which is said');
$engine->set('counter0=11 counter1=12 counter2=13 counter12=14 counter5=15 counter9=16 counter48=17 '
    . 'counter49=18 counter16=19 counter17=20 counter20=21 counter23=22 counter26=2 counter27=1500 '
    . 'counter30=23 counter32=24 counter39=25 queued=3 queue_limit=3');
$second->set('counter26=99');
$m = metrics();
is_deeply([ $m->wrong ], [], 'with everything');
for my $case ([ 'cache_hit_tokens_total', 11, tier => 'memory' ],
    [ 'cache_hit_tokens_total', 12, tier => 'host' ],
    [ 'cache_hit_tokens_total', 13, tier => 'redis' ], [ 'cache_miss_tokens_total', 14 ],
    [ 'cache_evicted_pages_total', 15, tier => 'host' ], [ 'cache_bytes', 16, tier => 'host' ],
    [ 'steps_total', 17 ], [ 'sessions', 18 ], [ 'redis_lookups_total', 19 ],
    [ 'redis_hits_total', 20 ], [ 'redis_saves_total', 21, result => 'over_quota' ],
    [ 'redis_sent_bytes_total', 22 ], [ 'redis_breaker', 1, state => 'open' ],
    [ 'redis_first_page_seconds', 0.0000015 ], [ 'redis_decisions_total', 23, decision => 'compute' ],
    [ 'redis_misses_total', 24, reason => 'absent' ], [ 'redis_misses_total', 25, reason => 'unwanted' ],
    [ 'queued_requests', 3 ], [ 'state', 1, state => 'full' ], [ 'up', 1 ]) {
    my ($name, $value, %labels) = @$case;

    cmp_ok($m->value("llm_engine_$name", engine => $one, %labels) // -1, '==', $value,
        join ' ', $name, %labels);
}
is($m->value('llm_engine_redis_breaker', engine => $two, state => 'none'), 1, 'a state of no meaning');
my ($table) = slurp('doc/nginx.md') =~ /^## Status\n(.*?)^## /ms;
my @told = map { /`(llm_\w+)`/g } $table =~ /^(\| `llm_.*?) \|/mg;
is_deeply([ sort @told ], [ sort $nginx->get('/metrics')->body =~ /^# TYPE (\w+)/mg ],
    'doc/nginx.md tells of these, and of no others');
my ($shown) = grep { $_->{engine} eq $one } @{ $nginx->get('/status')->json->{engines} };
is_deeply([ @$shown{qw(state redis_breaker steps_total)}, $shown->{cache_hit_tokens_total},
    $shown->{redis_misses_total}{unwanted} ],
    [ 'full', 'open', 17, { memory => 11, host => 12, redis => 13 }, 25 ], 'JSON says the same');
my $bytes = 'unix:bytes-\\xFF-\\xC3\\xAB.sock';
is($m->value('llm_engine_up', engine => $bytes), 0, 'a path that is no UTF-8 is shown so that it can be read');
ok((grep { $_->{engine} eq $bytes } @{ $nginx->get('/status')->json->{engines} }), 'in JSON, too');
$engine->set('counter26=0 queued=0 queue_limit=0');
$second->stop;
ok(wait_until(5, sub { (metrics()->value('llm_engine_up', engine => $two) // 1) == 0 }), 'one that is down');
$m = metrics();
is($m->value('llm_engine_state', engine => $two, state => 'down'), 1, 'is down');
is($m->value('llm_engine_pages', engine => $two), undef, 'and has nothing');
is_deeply([ $m->wrong ], [], 'which is right');
$second->start;

# --- with promtool, as Prometheus reads it ---

SKIP: {
    my ($promtool) = grep { -x } map { "$_/promtool" } split /:/, $ENV{PATH};
    skip('promtool (package prometheus) is not installed', 1) if !$promtool;
    my $file = $t->file('metrics', $nginx->get('/metrics')->body);
    my $said = `$promtool check metrics <$file 2>&1`;
    ok($? == 0 && $said eq '', 'promtool') or diag($said);
}

# --- without a zone ---

$nginx->reload(http => $http =~ s{llm_status_zone.*}{}r);
ok(wait_until(5, sub { !grep { $nginx->get('/metrics')->body =~ /llm_requests_total/ } 1 .. 5 }),
    'no zone, no requests');
$m = metrics();
is_deeply([ $m->wrong ], [], 'but still metrics');
is($m->value('llm_engine_up', engine => $one), 1, 'of the engines');
is_deeply([ sort keys %{ $nginx->get('/status')->json } ], [qw(engines nginx version)], 'and JSON');
is(ask('tokens=1')->status, 200, 'and it serves');

# --- the zone's name for something else ---

$nginx->reload(http => $http);
ok(wait_until(5, sub { !grep { $nginx->get('/metrics')->body !~ /llm_requests_total/ } 1 .. 5 }),
    'it is there again');
my $other_zone = 'llm_limit_zone $llm_tenant zone=llm:32k rate=60t/m;';
$nginx->reload(http => $http =~ s{llm_status_zone.*}{$other_zone}r);
ok(wait_until(5, sub { !grep { $nginx->get('/metrics')->body =~ /llm_requests_total/ } 1 .. 5 }),
    'it is another zone then');
is(ask('tokens=1')->status, 200, 'nothing is wrong with that');

$t->finish;
