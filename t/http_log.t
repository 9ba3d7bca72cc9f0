#!/usr/bin/perl

# conf/llm-log.conf, and with it the variables: what becomes of every kind of request stands in its
# line, whatever else looked at the variables before the end.

use strict;
use warnings;

use lib 't/lib';
use Cwd qw(abs_path);
use Encode qw(decode);
use JSON::PP ();
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(script => 'prompt=7 cached=4');
my $other = $t->fake_engine;
my $socket = $other->socket;
my $log = abs_path('conf/llm-log.conf');
my $nginx = $t->nginx(
    http => <<"EOT",
        include $log;
        access_log llm.log llm;
        limit_req_zone \$http_x_limited zone=z:1m rate=1r/m;
        llm_limit_zone \$http_x_limited zone=ours:1m rate=1r/m;
EOT
    server => <<"EOT",
        llm_tenant \$arg_tenant;
        client_max_body_size 100k;
        send_timeout 1s;
        add_header X-Early "\$llm_tenant \$llm_model \$llm_prompt_tokens \$llm_completion_tokens"
            always;
        add_header X-Early-Too "\$llm_finish_reason \$llm_first_token_time \$llm_queue_time" always;
        location /raw/v1/ { llm_pass unix:%%SOCK%%; llm_tenant \$http_x_tenant; }
        location /nobody/v1/ { llm_pass unix:%%DIR%%/nobody.sock; }
        location /short/v1/ { llm_pass unix:%%SOCK%%; llm_first_token_timeout 100ms; }
        location /body/v1/ { llm_pass unix:%%SOCK%%; client_body_timeout 100ms; }
        location /limited/v1/ { llm_pass unix:%%SOCK%%; limit_req zone=z; limit_req_status 429; }
        location /ours/v1/ { llm_pass unix:%%SOCK%%; llm_limit zone=ours nodelay; }
        location /denied/v1/ { llm_pass unix:%%SOCK%%; deny all; }
        location /named/v1/ { llm_pass unix:%%SOCK%%; llm_intercept_errors on; error_page 400 = \@teapot; }
        location \@teapot { return 418 "teapot"; }
        location /page/v1/ {
            llm_pass unix:%%SOCK%%; llm_intercept_errors on; error_page 503 500 413 /page.html;
        }
        location = /page.html { return 200 "page"; }
        location /next/v1/ { llm_pass unix:%%SOCK%%; llm_intercept_errors on; error_page 503 = \@next; }
        location \@next { llm_pass unix:$socket; }
        location /plain { return 200 "plain"; }
EOT
    pass => 'llm_pass unix:%%SOCK%%;');

my @names = qw(time request_id client method uri status bytes seconds tenant model finish_reason
    limit_status prompt_tokens cached_tokens completion_tokens reasoning_tokens queue_seconds
    first_token_seconds token_seconds mtp_acceptance);
my %text = map { $_ => 1 } qw(time request_id client method uri tenant model finish_reason
    limit_status);
my $json = JSON::PP->new->utf8;
my $at = 0;

# The next line, as an object.
sub line {
    my $text;

    wait_until(5, sub {
        $text = substr slurp("$nginx->{dir}/llm.log"), $at;
        return $text =~ /\n/;
    }) or return {};
    $text =~ s/\n.*//s;
    $at += length($text) + 1;
    return { raw => $text, object => eval { $json->decode($text) } // {} };
}

# What a request leaves behind: those of its fields that are expected, the others null or empty.
my %unknown = (tenant => 'a', model => '', finish_reason => 'error', limit_status => '',
    map { $_ => undef }
    qw(prompt_tokens cached_tokens completion_tokens reasoning_tokens queue_seconds
        first_token_seconds token_seconds mtp_acceptance));
my $some = [qr/^\d+\.\d{6}$/];
my %counted = (model => 'fake', prompt_tokens => 7, cached_tokens => 4, completion_tokens => 0,
    reasoning_tokens => 0);

sub logged {
    my ($name, $status, %expected) = @_;
    my $line = line();
    my $o = $line->{object};
    my %all = (%unknown, %expected);
    my @wrong;

    is_deeply([ sort keys %$o ], [ sort @names ], "$name: a line of JSON with all fields")
        or diag($line->{raw});
    for my $field (sort keys %all) {
        my ($have, $want) = ($o->{$field}, $all{$field});
        ($have) = $line->{raw} =~ /"$field":([^",}]+)/ if ref $want; # as it stands there
        my $good = ref $want ? defined $have && $have =~ $want->[0]
            : defined $want ? defined $have && $have eq $want : !defined $have;
        push @wrong, "$field is " . ($have // 'null') if !$good;
    }
    for my $field (grep { defined $o->{$_} } @names) { # the line itself tells a number from a text
        my $quoted = $line->{raw} =~ /"$field":"/;
        push @wrong, "$field is of the wrong type" if !!$quoted != !!$text{$field};
    }
    push @wrong, "status is $o->{status}" if $o->{status} != $status;
    ok(!@wrong, "$name: $status " . ($all{finish_reason} || '-')) or diag(join "\n", @wrong);
    return $o;
}

sub ask {
    my ($prompt, %more) = @_;
    my $uri = (delete $more{at} // '') . '/v1/completions?tenant=' . (delete $more{tenant} // 'a');

    return $nginx->post($uri, { prompt => $prompt, %more });
}

# Whether there is an engine again. (The line comes when the connection is closed.)
sub works {
    my $status = ask('tokens=1')->status;

    line();
    return $status == 200;
}

# The same in flight; what the engine then has.
sub begin {
    my ($prompt, %more) = @_;
    my $c = $nginx->client;
    my $n = $engine->counters->{submitted};

    $c->request('POST', ($more{at} // '') . '/v1/completions?tenant=a',
        json => { prompt => $prompt, stream => $more{stream} ? \1 : \0, n => $more{n} // 1 });
    wait_until(5, sub { $engine->counters->{submitted} > $n }) if !$more{waits};
    return $c;
}

# --- that went well ---

for my $stream (\0, \1) {
    my $name = $$stream ? 'a stream' : 'an answer';

    ask('tokens=5 every=5 reasoning=2', stream => $stream)->complete;
    my $o = logged($name, 200, %counted, completion_tokens => 5, reasoning_tokens => 2,
        finish_reason => 'stop', map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));
    is($o->{method} . $o->{uri}, 'POST/v1/completions', "$name: what was asked");
    like($o->{request_id}, qr/^req_\w{32}$/, "$name: request_id");
    ok($o->{bytes} > 50, "$name: bytes");
    ask('tokens=9 drafted=8 accepted=6', max_tokens => 4, stream => $stream)->complete;
    logged("$name, cut, with drafts", 200, %counted, completion_tokens => 4,
        finish_reason => 'length', mtp_acceptance => [qr/^0\.750*$/],
        map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));
    ask('tokens=1', stream => $stream)->complete;
    logged("$name of one token", 200, %counted, completion_tokens => 1, finish_reason => 'stop',
        map { $_ => $some } qw(queue_seconds first_token_seconds));
    ask('tokens=0', stream => $stream)->complete;
    logged("$name of none", 200, %counted, finish_reason => 'stop', queue_seconds => $some);
}
ask('tokens=2 every=1000')->complete;
my $slow = logged('a slow one', 200, %counted, completion_tokens => 2, finish_reason => 'stop',
    map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));
ok($slow->{token_seconds} > 0.1 && $slow->{token_seconds} < 5, 'time per token')
    or diag($slow->{token_seconds});
ask('tokens=0 completion=5')->complete;
logged('tokens without a text', 200, %counted, completion_tokens => 5, finish_reason => 'stop',
    queue_seconds => $some);
ask('drafted=3 accepted=2')->complete;
logged('a third is cut off', 200, %counted, completion_tokens => 3, finish_reason => 'stop',
    mtp_acceptance => [qr/^0\.666$/],
    map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));

# --- whose client left ---

for my $stream (0, 1) {
    for my $end (qw(close reset half_close)) {
        my $name = "$end, stream $stream";

        begin('counted=60000', stream => $stream)->$end;
        logged("$name, before it is counted", 499, model => 'fake', finish_reason => 'aborted');
        my $c = begin('first=60000', stream => $stream);
        sleep 0.03;
        $c->$end;
        logged("$name, in prefill", 499, %counted, finish_reason => 'aborted');
        $c = begin('tokens=4 end=60000', stream => $stream, n => 2);
        sleep 0.03;
        $c->$end;
        logged("$name, all choices ended", $stream ? 200 : 499, %counted, completion_tokens => 8,
            finish_reason => 'stop', first_token_seconds => $some, token_seconds => $some);
        $c = begin('tokens=3 every=30000', stream => $stream);
        sleep 0.03;
        $c->$end;
        logged("$name, in its answer", $stream ? 200 : 499, %counted, completion_tokens => 1,
            finish_reason => 'aborted', first_token_seconds => $some);
    }
}
my $c = $nginx->client;
$c->write("POST /v1/completions?tenant=a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
sleep 0.05;
$c->close;
logged('gone before the body was there', 400, finish_reason => 'aborted');
$c = $nginx->client(rcvbuf => 4096, read_size => 100);
$c->request('POST', '/v1/completions?tenant=a', json => { prompt => 'tokens=4000 size=4000',
    stream => \1 });
my $o = logged('one that does not read', 200, %counted, finish_reason => 'aborted',
    completion_tokens => [qr/^\d\d+$/], map { $_ => $some } qw(first_token_seconds token_seconds));
$c->close;

# while there is no session

$engine->set('accept=silent');
$engine->drop;
wait_until(5, sub { $engine->state->{running} == 0 });
sleep 0.3;
$c = begin('x', waits => 1);
sleep 0.2;
$c->close;
logged('gone before there was an engine', 499, finish_reason => 'aborted');
$engine->set('accept=normal');
wait_until(5, \&works);

# --- that failed ---

my %finished = (%counted, queue_seconds => $some);
for my $case ([ failed => 500 ], [ non_finite => 500 ], [ queue_full => 503 ],
    [ tenant_full => 429 ], [ context_length => 400 ], [ invalid => 400 ], [ revoked => 401 ]) {
    my ($status, $code) = @$case;

    ask("status=$status")->complete;
    logged($status, $code, %finished);
    ask("status=$status tokens=2 end=50", stream => \1)->body;
    logged("$status in a stream", 200, %finished, completion_tokens => 2,
        first_token_seconds => $some, token_seconds => $some);
}
ask('hang=first', at => '/short')->complete;
logged('too late', 503, %counted);
$c = begin('tokens=2 every=60000', stream => 1);
$c->response->event;
$engine->drop;
logged('an engine that dies', 200, %counted, completion_tokens => 1,
    first_token_seconds => $some);
wait_until(5, \&works);

# --- that were refused ---

ask('x', at => '/nobody')->complete;
logged('no engine', 503);
ask('x', model => 'what')->complete;
logged('no such model', 404, model => 'what');
ask('x', max_tokens => -1)->complete;
logged('a wrong parameter', 400);
ask('x', tenant => '')->complete;
logged('no tenant', 401, tenant => '');
ask('x' x 200_000)->complete;
logged('too large', 413);
ask('x', at => '/denied')->complete;
logged('denied by nginx', 403);
for my $status (200, 429) {
    $nginx->client->post('/limited/v1/completions?tenant=a', { prompt => 'tokens=1' },
        headers => { 'X-Limited' => 1 })->complete;
    $status == 200 ? line() : logged('limited by nginx', 429);
}
for my $case ([ 200, %counted, completion_tokens => 1, finish_reason => 'stop', limit_status => 'PASSED',
        map { $_ => $some } qw(queue_seconds first_token_seconds) ], [ 429, limit_status => 'REJECTED' ]) {
    my ($status, %expected) = @$case;

    $nginx->client->post('/ours/v1/completions?tenant=a', { prompt => 'tokens=1' },
        headers => { 'X-Limited' => 1 })->complete;
    logged('limited by ours', $status, %expected);
}
$c = $nginx->client;
$c->write("POST /body/v1/completions?tenant=a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{");
$c->response->complete;
$c->close;
logged('a body that does not come', 408);
$nginx->get('/v1/what?tenant=a')->complete;
logged('no such route', 404);
$nginx->get('/v1/completions?tenant=a')->complete;
logged('no such method', 405);
$nginx->get('/v1/models?tenant=a')->complete;
logged('a list', 200, finish_reason => '');
$nginx->get('/plain')->complete;
is(line()->{object}{finish_reason}, '', 'what is none of ours has no reason');

# --- that an error_page answered ---

ask('status=invalid', at => '/named')->complete;
logged('a named location', 418, %finished);
ask('x', at => '/named', max_tokens => -1)->complete;
logged('a named location, before the engine', 418);
ask('status=failed', at => '/page')->complete;
logged('a page', 500, %finished);
ask('x' x 200_000, at => '/page')->complete;
logged('what never came to a handler', 413, tenant => '', finish_reason => '');
ask('tokens=3 every=5', at => '/next')->complete;
logged('one that needs no page', 200, %counted, completion_tokens => 3, finish_reason => 'stop',
    map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));
for my $stream (\0, \1) {
    ask('status=draining prompt=9', at => '/next', stream => $stream)->complete;
    my $o = line()->{object};
    is("$o->{status} $o->{finish_reason} $o->{prompt_tokens}", '503 error 9', 'refused twice');
    $engine->set('state=draining');
    ask('tokens=3 every=5', at => '/next', stream => $stream)->complete;
    logged('answered by the next', 200, %counted, prompt_tokens => 2, cached_tokens => 0,
        completion_tokens => 3, finish_reason => 'stop',
        map { $_ => $some } qw(queue_seconds first_token_seconds token_seconds));
    $engine->set('state=ready');
}

# --- what would be no JSON ---

sub ask_as {
    my ($tenant, $uri) = @_;

    $nginx->client->post("/raw/v1/$uri/v1/completions", { prompt => 'tokens=1' },
        headers => { 'X-Tenant' => $tenant })->complete;
    return line();
}

for my $tenant ('"', '\\', '\\u0000', "\x7f", "Zo\xc3\xab", "\xf0\x9f\x98\x80") {
    my $o = ask_as($tenant, '%22%0a%01')->{object};

    is($o->{tenant}, decode('UTF-8', $tenant), 'a tenant is logged as it is');
    is($o->{uri}, "/raw/v1/\"\n\x01/v1/completions", 'like the URI');
}
for my $tenant ("\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80") {
    my $line = ask_as($tenant, '%ff%fe');

    like($line->{object}{tenant}, qr/not UTF-8/, 'what is no UTF-8 is not there');
    like($line->{object}{uri}, qr/not ASCII/, 'like the URI');
    unlike($line->{raw}, qr/[\x80-\xff]/, 'in no way');
}

$t->finish;
