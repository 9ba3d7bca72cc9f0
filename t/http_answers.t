#!/usr/bin/perl

# Answers, whole and streamed: the objects byte for byte where clients care, usage, variables.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(name => 'fake');
my $nginx = $t->nginx(
    http => <<'EOT',
        log_format llm '$uri $status tenant=$llm_tenant model=$llm_model prompt=$llm_prompt_tokens '
                       'cached=$llm_cached_tokens completion=$llm_completion_tokens '
                       'reasoning=$llm_reasoning_tokens queue=$llm_queue_time '
                       'first=$llm_first_token_time token=$llm_token_time '
                       'finish=$llm_finish_reason id=$llm_request_id';
        access_log llm.log llm;
        gzip on; gzip_types *; gzip_min_length 1; charset utf-8;
EOT
    server => <<'EOT',
        location /silent/v1/ {
            llm_pass unix:%%SOCK%%; llm_tenant a; llm_keepalive_interval 100ms;
        }
        location /never/v1/ { llm_pass unix:%%SOCK%%; llm_tenant a; llm_keepalive_interval 0; }
        location /plain { return 200; }
EOT
);
my $json = JSON::PP->new->utf8->canonical;

sub completion {
    my ($prompt, %more) = @_;

    return $nginx->post($more{uri} // '/v1/completions', { prompt => $prompt,
        map { $_ => $more{$_} } grep { $_ ne 'uri' } keys %more });
}

sub chat {
    my ($content, %more) = @_;

    return $nginx->post('/v1/chat/completions',
        { messages => [ { role => 'user', content => $content } ], %more });
}

my $id = qr/[0-9a-f]{32}/;

# --- one piece ---

my $r = completion('tokens=2 prompt=10 cached=4');
my $a = $r->json;
like($a->{id}, qr/^cmpl-$id$/, 'id');
is('req_' . substr($a->{id}, 5), $r->header('x-request-id'), 'the id of the request');
ok(abs($a->{created} - time) < 5, 'created');
delete @$a{qw(id created)};
is_deeply($a, { object => 'text_completion', model => 'fake',
    system_fingerprint => 'fp_facefacefaceface',
    choices => [ { index => 0, text => 't0 t1', logprobs => undef, finish_reason => 'stop' } ],
    usage => { prompt_tokens => 10, completion_tokens => 2, total_tokens => 12,
        prompt_tokens_details => { cached_tokens => 4 },
        completion_tokens_details => { reasoning_tokens => 0 },
        prompt_cache_hit_tokens => 4, prompt_cache_miss_tokens => 6 } }, 'a completion');
is($r->header('Content-Type'), 'application/json', 'type');

$a = chat('tokens=3 reasoning=1')->json;
like($a->{id}, qr/^chatcmpl-$id$/, 'id of a chat');
is($a->{object}, 'chat.completion', 'object');
is_deeply($a->{choices}, [ { index => 0, logprobs => undef, finish_reason => 'stop',
    message => { role => 'assistant', content => ' t1 t2', reasoning_content => 't0' } } ], 'a chat');
is($a->{usage}{completion_tokens_details}{reasoning_tokens}, 1, 'reasoning tokens');

$a = chat('tool=get_weather finish=tool_calls answer=%7b%22a%22:1%7d')->json->{choices}[0];
is($a->{finish_reason}, 'tool_calls', 'tool call: finish_reason');
is($a->{message}{content}, undef, 'tool call: no content');
like($a->{message}{tool_calls}[0]{id}, qr/^call_\w+$/, 'tool call: id');
delete $a->{message}{tool_calls}[0]{id};
is_deeply($a->{message}{tool_calls}, [ { type => 'function',
    function => { name => 'get_weather', arguments => '{"a":1}' } } ], 'tool call');

is_deeply(chat('tokens=0')->json->{choices}[0]{message}, { role => 'assistant', content => '' },
    'nothing said');
is(completion('tokens=9', max_tokens => 2)->finish_reason, 'length', 'length');
is(completion('finish=error')->finish_reason, 'error', 'one choice failed');
$a = completion([ 'tokens=2', 'x', 'y' ])->json->{choices};
is_deeply([ map { "$_->{index} $_->{text}" } @$a ], [ '0 t0 t1', '1 t0 t1', '2 t0 t1' ],
    'a choice for each prompt');
is(length completion('size=1000 tokens=2000')->text, 2_000_000, 'a long answer');

# several choices, which end one after the other and for reasons of their own

sub text_of { my ($i, $n) = @_; join ' ', map { "$i.$_" } 0 .. $n - 1 }

my @choices = map { [ $_, text_of($_, $_ < 2 ? 2 + $_ : 3), $_ < 2 ? 'stop' : 'length' ] } 0 .. 3;
$a = completion('answer=choice tokens=2 prompt=10', n => 4, max_tokens => 3)->json;
is_deeply([ map { [ @$_{qw(index text finish_reason)} ] } @{ $a->{choices} } ], \@choices,
    'n: each its text and its end, in order');
is_deeply([ @{ $a->{usage} }{qw(prompt_tokens completion_tokens total_tokens)} ], [ 10, 11, 21 ],
    'n: one prompt, the sum of all choices');
$a = chat('answer=choice tokens=2', n => 4, max_tokens => 3)->json;
is_deeply([ map { [ $_->{index}, $_->{message}{content}, $_->{finish_reason} ] } @{ $a->{choices} } ],
    \@choices, 'n: a chat');
$a = completion([ 'answer=choice tokens=2', 'x', 'y' ], n => 2)->json->{choices};
is_deeply([ map { "$_->{index} $_->{text}" } @$a ], [ map { "$_ " . text_of($_, 2 + $_) } 0 .. 5 ],
    'n for each prompt');
$a = chat('answer=choice tokens=1', n => 128)->json->{choices};
is_deeply([ map { $_->{message}{content} } @$a ], [ map { text_of($_, 1 + $_) } 0 .. 127 ],
    'n: as many as there may be');
is(completion('answer=choice size=1000 tokens=100', n => 8)->json->{usage}{completion_tokens}, 828,
    'n: long ones');

# --- streams ---

sub stream_of {
    my ($r) = @_;

    is($r->status, 200, 'stream: status') or diag($r->body);
    return [ map { $_->{json} ? $json->decode($_->{data}) : $_->{data} } $r->events ];
}

$r = completion('tokens=2', stream => \1);
is($r->header('Content-Type'), 'text/event-stream', 'stream: type');
is($r->header('Cache-Control'), 'no-cache', 'stream: no cache');
is($r->header('X-Accel-Buffering'), 'no', 'stream: no buffering');
is($r->header('Content-Length'), undef, 'stream: no length');
my $e = stream_of($r);
is(pop @$e, '[DONE]', 'stream: [DONE]');
ok($r->complete, 'stream: complete');
my %ids = map { $_->{id} => 1 } @$e;
is(scalar keys %ids, 1, 'stream: one id');
for (@$e) {
    my %head = %$_;
    delete @head{qw(choices id created)};
    is_deeply(\%head, { object => 'text_completion', model => 'fake',
        system_fingerprint => 'fp_facefacefaceface' }, 'stream: head');
}
is_deeply([ map { $_->{choices}[0] } @$e ], [
    { index => 0, text => 't0', logprobs => undef, finish_reason => undef },
    { index => 0, text => ' t1', logprobs => undef, finish_reason => undef },
    { index => 0, text => '', logprobs => undef, finish_reason => 'stop' } ], 'stream: events');

$r = chat('tokens=2 reasoning=1 prompt=5', stream => \1, stream_options => { include_usage => \1 });
$e = stream_of($r);
is(pop @$e, '[DONE]', 'chat: [DONE]');
my $last = pop @$e;
is_deeply($last->{choices}, [], 'chat: usage has no choice');
is($last->{usage}{total_tokens}, 7, 'chat: usage');
ok(!(grep { !exists $_->{usage} || defined $_->{usage} } @$e), 'chat: the others say null');
is($e->[0]{object}, 'chat.completion.chunk', 'chat: object');
is_deeply([ map { $_->{choices}[0] } @$e ], [
    map +{ index => 0, logprobs => undef, finish_reason => $_->[1], delta => $_->[0] },
    [ { role => 'assistant', content => '' } ], [ { reasoning_content => 't0' } ],
    [ { content => ' t1' } ], [ {}, 'stop' ] ], 'chat: deltas');

ok(!exists stream_of(chat('tokens=1', stream => \1))->[0]{usage}, 'no usage unless asked for');

$e = stream_of(chat('tool=f finish=tool_calls tokens=2 answer=ab', stream => \1));
my @calls = map { $_->{choices}[0]{delta}{tool_calls}[0] // () } grep { ref } @$e;
like($calls[0]{id}, qr/^call_/, 'tool call: id');
delete $calls[0]{id};
is_deeply(\@calls, [
    { index => 0, type => 'function', function => { name => 'f', arguments => '' } },
    ({ index => 0, function => { arguments => 'ab' } }) x 2 ], 'tool call: deltas');

is_deeply([ map { $_->{choices}[0]{delta} } grep { ref } @{ stream_of(chat('tokens=0',
    stream => \1)) } ], [ { role => 'assistant', content => '' }, {} ], 'nothing said');

$r = completion([ 'tokens=2', 'x' ], stream => \1);
$e = stream_of($r);
is($r->text(1), 't0 t1', 'the second choice');
is($r->finish_reason(1), 'stop', 'and its end');
is(scalar(grep { ref } @$e), 6, 'events of both');

for my $case ([ chat('answer=choice tokens=2 prompt=10', n => 4, max_tokens => 3, stream => \1,
        stream_options => { include_usage => \1 }), 'chat' ],
    [ completion('answer=choice tokens=2 prompt=10', n => 4, max_tokens => 3, stream => \1,
        stream_options => { include_usage => \1 }), 'completion' ]) {
    my ($r, $name) = @$case;
    my (%roles, @after);

    $e = stream_of($r);
    is(pop @$e, '[DONE]', "n, $name: [DONE]");
    my $usage = pop @$e;
    is_deeply([ $usage->{choices}, @{ $usage->{usage} }{qw(prompt_tokens completion_tokens)} ],
        [ [], 10, 11 ], "n, $name: usage");
    is(scalar(grep { defined $_->{usage} || @{ $_->{choices} } != 1 } @$e), 0,
        "n, $name: once, and one choice an event");
    my %ended;
    for my $choice (map { $_->{choices}[0] } @$e) {
        my $i = $choice->{index};
        push @after, $i if $ended{$i};
        $ended{$i} = 1 if defined $choice->{finish_reason};
        $roles{$i}++ if ($choice->{delta} // {})->{role};
    }
    is_deeply([ map { [ $_, $r->text($_), $r->finish_reason($_) ] } 0 .. 3 ], \@choices,
        "n, $name: each its text and its end");
    is_deeply(\@after, [], "n, $name: nothing after an end");
    is_deeply(\%roles, { map { $_ => 1 } 0 .. 3 }, "n, $name: who speaks, once a choice")
        if $name eq 'chat';
}

# llm_buffer_size is the request's, however many choices there are

my $slow = $nginx->client(rcvbuf => 4096);
$slow->request('POST', '/v1/completions',
    json => { prompt => 'answer=choice size=10000 tokens=40', n => 8, stream => \1 });
sleep 0.5;
my $credited = $engine->counters->{credited};
sleep 0.3;
is_deeply([ @{ $engine->counters }{qw(requests credited)} ], [ 1, $credited ],
    'n: a client that does not read stops them all');
my $all = $slow->response->body;
is(scalar(() = $all =~ /"index":7,/g), 48, 'n: and gets all when it does');
like($all, qr/data: \[DONE\]\n\n\z/, 'n: to the end');

# --- text that breaks lines, strings or terminals ---

my %hard = (
    'quotes' => [ '%22%5c', '"\\' ], 'control' => [ '%01%1b[0m%7f', "\x01\x1b[0m\x7f" ],
    'lines' => [ 'a%0ab%0dc%09%08%0c', "a\nb\rc\t\b\f" ],
    'event ends' => [ '%0a%0adata:%20[DONE]%0a%0a', "\n\ndata: [DONE]\n\n" ],
    'other line ends' => [ '%e2%80%a8%e2%80%a9%c2%85', "\x{2028}\x{2029}\x{85}" ],
    'their neighbours' => [ '%e2%80%a7%e2%80%aa%c2%84', "\x{2027}\x{202a}\x{84}" ],
    'many bytes' => [ '%f0%9f%98%80%c3%a9%e6%bc%a2', "\x{1f600}\x{e9}\x{6f22}" ],
);
for my $name (sort keys %hard) {
    my ($script, $want) = @{ $hard{$name} };

    is(completion("answer=$script")->text, $want, "$name, whole");
    $r = completion("answer=$script tokens=500", stream => \1);
    is($r->text, $want x 500, "$name, streamed") and ok($r->done, "$name, streamed to the end");
}
unlike(completion('answer=%e2%80%a8%c2%85', stream => \1)->body, qr/\xe2\x80\xa8|\xc2\x85/,
    'no byte of a stream ends a line that should not');

# every size of text meets the ends of buffers

my @bad = grep {
    my $r = completion("answer=%22 size=$_ tokens=40", stream => \1);
    ($r->text // '') ne ('"' . '.' x ($_ - 1)) x 40 || !$r->done
} map { $_ * 37 + 1 } 1 .. 60;
ok(!@bad, 'sizes') or diag("@bad");

# --- silence ---

$r = completion('first=350 tokens=1', uri => '/silent/v1/completions', stream => \1);
my @events = $r->events;
my @comments = grep { defined $_->{comment} } @events;
ok(@comments >= 2 && @comments <= 4, 'comments while nothing is said') or diag(scalar @comments);
ok($comments[0]{time} - $r->times->{asked} > 0.08, 'not at once');
is($r->text, 't0', 'then the answer');
$r = completion('first=250 tokens=1', uri => '/never/v1/completions', stream => \1);
ok(!(grep { defined $_->{comment} } $r->events), 'no comments with llm_keepalive_interval 0');
$r = completion('first=250 tokens=1', uri => '/silent/v1/completions');
is($r->status, 200, 'no comments in one piece');
is($r->text, 't0', 'no comments in one piece: text');

# --- tokens leave when they come ---

$r = completion('tokens=5 every=60', stream => \1);
@events = grep { ref $_->{json} } $r->events;
ok($events[3]{time} - $events[1]{time} > 0.06, 'one by one');

# without the delay of Nagle's algorithm, which a loopback hides: nginx's debug log tells

for my $case ([ on => 1 ], [ off => 0 ]) {
    my ($switch, $want) = @$case;
    my $debug = $t->nginx(debug => 1, location => "tcp_nodelay $switch;");

    is($debug->post('/v1/completions', { prompt => 'tokens=1', stream => \1 })->text, 't0', 'a stream');
    is(scalar($debug->error_log =~ /: \*\d+ tcp_nodelay\n/ ? 1 : 0), $want, "tcp_nodelay $switch");
}

# --- gzip and charset keep away from events, not from the rest ---

my @accept = (headers => { 'Accept-Encoding' => 'gzip' });
$r = $nginx->client->post('/v1/completions', { prompt => 'tokens=1', stream => \1 }, @accept);
is($r->header('Content-Encoding'), undef, 'events are not compressed');
is($r->text, 't0', 'events are read');
$r = $nginx->client->post('/v1/completions', { prompt => 'tokens=1' }, @accept);
is($r->header('Content-Encoding'), 'gzip', 'an answer in one piece is, where gzip is on');

# --- variables ---

$nginx->get('/plain');
completion('tokens=0', uri => '/v1/nowhere');
completion('tokens=5 prompt=20 cached=16 first=50 every=10', stream => \1)->body;
chat('tokens=4 reasoning=2')->body;
completion('status=context_length prompt=77')->body;

# in whatever order: nginx logs when a connection is closed
sub logged {
    my ($pattern) = @_;
    my $line;

    wait_until(5, sub { ($line) = slurp("$nginx->{dir}/llm.log") =~ /^(.*$pattern.*)$/m });
    return [ (split ' ', $line // '')[ 0, 1 ], { ($line // '') =~ /(\w+)=(\S+)/g } ];
}
my $plain = logged('/plain');
my $nowhere = logged('/v1/nowhere');
my $streamed = logged('cached=16');
my $chatted = logged('reasoning=2');
my $refused = logged('prompt=77');
is(join(' ', map { $plain->[2]{$_} } sort keys %{ $plain->[2] }), '- ' x 10 . '-',
    'nothing is known of other requests');
is($nowhere->[2]{model}, '-', 'no model');
like($nowhere->[2]{id}, qr/^req_$id$/, 'but an id');
my $v = $streamed->[2];
is_deeply([ @$v{qw(tenant model prompt cached completion reasoning finish)} ],
    [ 'test', 'fake', 20, 16, 5, 0, 'stop' ], 'a stream');
ok($v->{first} >= 0.05 && $v->{first} < 5, 'time to the first token');
ok($v->{token} >= 0.008 && $v->{token} < 1, 'time between tokens');
ok($v->{queue} >= 0.05 && $v->{queue} < 5, 'time in the queue');
like($v->{$_}, qr/^\d+\.\d{6}$/, "$_: seconds and microseconds") for qw(first token queue);
is_deeply([ @{ $chatted->[2] }{qw(completion reasoning finish)} ], [ 4, 2, 'stop' ], 'a chat');
is_deeply([ $refused->[1], @{ $refused->[2] }{qw(finish first completion)} ], [ 400, 'error', '-', 0 ],
    'refused by the engine');

$t->finish;
