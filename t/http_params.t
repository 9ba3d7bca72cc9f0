#!/usr/bin/perl

# Every parameter: what it does to the request that the engine sees, and what is refused, with
# values chosen to break things.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->fake_engine(script => 'answer=request');
my $nginx = $t->nginx(server => <<'EOT');
    keepalive_requests 1000000;
    location /strict/v1/ {
        llm_pass unix:%%SOCK%%;
        llm_tenant test;
        llm_unknown_fields reject;
    }
EOT
my $client = $nginx->client;

# Sends `members` (JSON text, "" for none) beside a prompt or messages; the answer.
sub ask {
    my ($kind, $members, $prefix) = @_;
    my ($uri, $prompt) = $kind eq 'chat'
        ? ('chat/completions', '"messages": [{"role": "user", "content": "x"}]')
        : ('completions', '"prompt": "x"');

    $client->request('POST', ($prefix // '') . "/v1/$uri", keepalive => 1,
        body => "{$prompt" . (length $members ? ", $members" : '') . '}');
    my $r = $client->response;
    $r->body;
    return $r;
}

# What the engine saw.
sub seen {
    my ($r) = @_;
    my $text = $r->text;

    return defined $text ? JSON::PP->new->decode($text) : {};
}

sub refused {
    my ($kind, $members, $param, $name) = @_;
    my $r = ask($kind, $members);
    my $e = ($r->json // {})->{error} // {};

    $name //= "$kind: $members";
    is($r->status, 400, "$name: 400") or return;
    is($e->{type}, 'invalid_request_error', "$name: type");
    is($e->{param}, $param, "$name: param");
}

# --- what nothing says ---

my $default = seen(ask('completion', ''));
is_deeply(
    [ @$default{qw(kind tenant temperature top_p top_k min_p repetition_penalty presence_penalty
        frequency_penalty n max_tokens min_tokens weight scope credit)} ],
    [ 'completion', 'test', 1, 1, 0, 0, 1, 0, 0, 1, 4096, 0, 1, 0, 0 ], 'defaults');
is($default->{tenant_digest}, '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
    'the SHA-256 of "test"');
is_deeply($default->{flags}, [ 'parallel_tools', 'fit_context' ], 'flags');
is_deeply($default->{prompts}, ['x'], 'prompt');
is_deeply(seen(ask('chat', ''))->{messages}, [ { role => 'user', content => 'x' } ], 'message');

# --- numbers ---

# name, kinds, lowest, highest, integer, member of what the engine sees; values between are good
my @numbers = (
    [ 'max_tokens', 'both', 1, 4096, 1 ],
    [ 'max_completion_tokens', 'both', 1, 4096, 1, 'max_tokens' ],
    [ 'min_tokens', 'both', 0, 4096, 1 ],
    [ 'temperature', 'both', 0, 2 ],
    [ 'top_p', 'both', 0, 1 ],
    [ 'top_k', 'both', -1, 2**31 - 1, 1 ],
    [ 'min_p', 'both', 0, 1 ],
    [ 'presence_penalty', 'both', -2, 2 ],
    [ 'frequency_penalty', 'both', -2, 2 ],
    [ 'repetition_penalty', 'both', 0.01, 2 ],
    [ 'seed', 'both', -9.3e18, 9.3e18, 1 ],
    [ 'n', 'both', 1, 128, 1 ],
    [ 'best_of', 'completion', 1, 1, 1, '' ],
    [ 'top_logprobs', 'chat', 0, 0, 0, '' ],
    [ 'logprobs', 'completion', 1, 0, 0, '' ],
);
my @odd = (qw(NaN Infinity -Infinity 1e400 1e-400 -0 -1 0 1 2147483647 2147483648 4294967296
    9007199254740993 9223372036854775807 9223372036854775808 1.5 "1" true null [] {}), '"1e9"',
    '0.5', '2', '4096', '4097', '-2', '3', '[1]', '1e1', '"NaN"');

sub is_integer { $_[0] =~ /^-?\d+$/ }

for my $number (@numbers) {
    my ($name, $kinds, $low, $high, $integer, $member) = @$number;

    for my $kind ($kinds eq 'both' ? qw(chat completion) : $kinds) {
        for my $value (@odd) {
            my $r = ask($kind, qq("$name": $value));
            my $json = $value !~ /^-?(?:NaN|Infinity)$|^1e400$/ && $value ne '9223372036854775808';
            my $what = "$kind: $name $value";

            if ($value eq 'null') {
                is($r->status, 200, "$what: as if absent");
                my $want = seen(ask($kind, ''));
                delete @{$_}{qw(queue_deadline first_token_deadline deadline)}
                    for $want, my $got = seen($r);
                is_deeply($got, $want, "$what: no difference");
                next;
            }
            my $number = $json && $value =~ /^-?[\d.]+(?:e-?\d+)?$/;
            my $good = $number && $value >= $low && $value <= $high
                && (!$integer || is_integer($value));
            if (!$good) {
                is($r->status, 400, "$what: 400");
                is(($r->json // {})->{error}{param}, $json ? $name : undef, "$what: param");
                next;
            }
            is($r->status, 200, "$what: good") or next;
            next if defined $member && $member eq '';
            my $got = seen($r)->{ $member // $name };
            my $want = $name eq 'top_k' && $value < 0 ? 0 : $value;
            ok(abs($got - $want) < 1e-6 || $got eq $want, "$what: arrives") or diag($got);
        }
    }
}
is(seen(ask('chat', '"seed": -5'))->{seed}, -5, 'a negative seed');
ok((grep { $_ eq 'has_seed' } @{ seen(ask('chat', '"seed": 0'))->{flags} }), 'a seed is a seed');

# pairs

refused('chat', '"max_tokens": 5, "max_completion_tokens": 6', 'max_tokens');
is(seen(ask('chat', '"max_tokens": 5, "max_completion_tokens": 5'))->{max_tokens}, 5,
    'both, but the same');
refused('chat', '"max_tokens": 5, "min_tokens": 6', 'min_tokens');
is(ask('chat', '"max_tokens": 5, "min_tokens": 5')->status, 200, 'min_tokens is max_tokens');
refused('chat', '"max_tokens": 0, "stream": true', 'max_tokens');
ok(!(grep { $_ eq 'fit_context' } @{ seen(ask('chat', '"max_tokens": 5'))->{flags} }),
    'who asks for a length gets it, or an error');

# --- choices ---

is(ask('completion', '"n": 3, "best_of": 3')->status, 200, 'best_of is n');
refused('completion', '"n": 3, "best_of": 2', 'best_of');
refused('completion', '"n": 2, "best_of": 3', 'best_of');
refused('chat', '"n": 129', 'n');
for my $case ([ 8, 200 ], [ 9, 400 ]) {
    my ($n, $status) = @$case;
    my $r = $nginx->post('/v1/completions', { prompt => [ ('answer=x') x 128 ], n => $n });

    is($r->status, $status, "128 prompts, n $n");
    is(($r->json // {})->{error}{param}, $status == 200 ? undef : 'n', 'by name');
    is(scalar @{ $r->json->{choices} }, 1024, 'all of them') if $status == 200;
}

# --- true or false ---

for my $case ([ ignore_eos => 'both', 'ignore_eos', undef ],
    [ skip_special_tokens => 'both', undef, 'keep_special' ],
    [ parallel_tool_calls => 'chat', 'parallel_tools', undef ]) {
    my ($name, $kinds, $on, $off) = @$case;

    for my $kind ($kinds eq 'both' ? qw(chat completion) : $kinds) {
        for my $value (qw(true false)) {
            my %flags = map { $_ => 1 } @{ seen(ask($kind, qq("$name": $value)))->{flags} };
            is($flags{$on} // 0, $value eq 'true' ? 1 : 0, "$kind: $name $value") if $on;
            is($flags{$off} // 0, $value eq 'true' ? 0 : 1, "$kind: $name $value") if $off;
        }
        refused($kind, qq("$name": $_), $name) for qw(0 1 "true" [] {});
    }
}
refused('chat', qq("stream": $_), 'stream') for qw(0 1 "true" [] {});
is_deeply([ grep { /think/ } @{ seen(ask('chat',
    qq("chat_template_kwargs": {"thinking": $_->[0]})))->{flags} } ], [ $_->[1] // () ],
    "thinking $_->[0]")
    for [ true => 'thinking_on' ], [ false => 'thinking_off' ], ['null'];
refused('chat', '"chat_template_kwargs": {"thinking": 1}', 'chat_template_kwargs.thinking');
refused('chat', '"chat_template_kwargs": [1]', 'chat_template_kwargs');
is(ask('chat', '"chat_template_kwargs": {"x": 1}')->header('x-llm-ignored'),
    'chat_template_kwargs.x', 'a part that is unknown');

# --- streams ---

refused('chat', '"stream_options": {"include_usage": true}', 'stream_options');
refused('chat', '"stream": true, "stream_options": 1', 'stream_options');
refused('chat', '"stream": true, "stream_options": {"include_usage": 1}',
    'stream_options.include_usage');
refused('chat', '"stream": true, "stream_options": {"continuous_usage_stats": true}',
    'stream_options.continuous_usage_stats');
is(ask('chat', '"stream": true, "stream_options": {"include_obfuscation": false}')->status, 200,
    'obfuscation is nobody\'s business');
is(ask('chat', '"stream": false, "stream_options": null')->status, 200, 'no options');

# --- lists ---

is_deeply(seen(ask('chat', '"stop": "a"'))->{stop}, ['a'], 'stop');
is_deeply(seen(ask('chat', '"stop": ["a", "\u00e9", "\n"]'))->{stop}, [ 'a', "\x{e9}", "\n" ],
    'a list of stops');
is(seen(ask('chat', '"stop": []'))->{stop}, undef, 'an empty list of stops');
my $most = join ',', map { qq("s$_") } 1 .. 64;
is(scalar @{ seen(ask('chat', qq("stop": [$most])))->{stop} }, 64, 'as many stops as there may be');
refused('chat', qq("stop": [$most, "more"]), 'stop', 'a stop too many');
is(ask('chat', '"stop": "' . 'x' x 1024 . '"')->status, 200, 'a long stop');
refused('chat', '"stop": "' . 'x' x 1025 . '"', 'stop', 'a stop too long');
refused('chat', '"stop": [' . join(',', ('"x"') x 100_000) . ']', 'stop', 'very many stops');
refused('chat', qq("stop": $_), 'stop') for '""', '[""]', '1', '[1]', '{}', 'true', '[["a"]]';

is_deeply(seen(ask('chat', '"stop_token_ids": [0, 7, 2147483647]'))->{stop_ids},
    [ 0, 7, 2147483647 ], 'stop_token_ids');
refused('chat', qq("stop_token_ids": $_), 'stop_token_ids')
    for '1', '"1"', '[-1]', '[2147483648]', '[1.0]', '["1"]', '{}', '[[1]]';
refused('chat', '"stop_token_ids": [' . join(',', 1 .. 65) . ']', 'stop_token_ids', '65 ids');

is_deeply([ sort { $a->[0] <=> $b->[0] } @{ seen(ask('chat',
    '"logit_bias": {"5": -100, "0": 1.5, "2147483647": 100}'))->{logit_bias} } ],
    [ [ 0, 1.5 ], [ 5, -100 ], [ 2147483647, 100 ] ], 'logit_bias');
is(seen(ask('chat', '"logit_bias": {}'))->{logit_bias}, undef, 'an empty logit_bias');
refused('chat', qq("logit_bias": $_), 'logit_bias')
    for '{"-1": 0}', '{"1e3": 0}', '{"abc": 0}', '{"": 0}', '{"2147483648": 0}', '{"01": 0}',
    '{" 1": 0}', '{"1": 101}', '{"1": -100.1}', '{"1": "5"}', '{"1": null}', '{"1": 1e38}', '[]',
    '"1"', '{"99999999999999999999": 1}';
my $biases = join ',', map { qq("$_": -100) } 1 .. 1024;
is(scalar @{ seen(ask('chat', qq("logit_bias": {$biases})))->{logit_bias} }, 1024, '1024 biases');
refused('chat', qq("logit_bias": {$biases, "0": 1}), 'logit_bias', '1025 biases');

# --- known, but not done: without effect or not at all ---

for my $case (
    [ completion => echo => 'false' ], [ completion => suffix => '""' ],
    [ chat => logprobs => 'false' ], [ chat => top_logprobs => 0 ],
    [ both => response_format => '{"type": "text"}' ],
    [ chat => modalities => '["text"]' ], [ chat => functions => '[]' ],
    [ chat => function_call => '"none"' ], [ chat => verbosity => '"medium"' ],
    [ both => use_beam_search => 'false' ], [ both => length_penalty => '1.0' ],
    [ both => repeat_penalty => '1' ], [ chat => add_generation_prompt => 'true' ],
    [ chat => add_special_tokens => 'false' ], [ completion => add_special_tokens => 'true' ],
    [ both => priority => 0 ], [ both => spaces_between_special_tokens => 'true' ],
    [ both => grammar => '""' ], [ both => n_predict => -1 ])
{
    my ($kinds, $name, $neutral) = @$case;

    for my $kind ($kinds eq 'both' ? qw(chat completion) : $kinds) {
        is(ask($kind, qq("$name": $neutral))->status, 200, "$kind: $name $neutral has no effect");
        is(ask($kind, qq("$name": null))->status, 200, "$kind: $name null");
        refused($kind, qq("$name": "effect"), $name);
        refused($kind, qq("$name": 12), $name);
    }
}
refused('chat', qq("$_->[0]": $_->[1]), $_->[0])
    for [ logprobs => 'true' ], [ top_logprobs => 3 ], [ response_format => '{"type": "json_object"}' ],
    [ response_format => '{"type": "json_schema", "json_schema": {}}' ],
    [ reasoning_effort => '"high"' ], [ modalities => '["text", "audio"]' ],
    [ audio => '{"voice": "x"}' ], [ prediction => '{}' ], [ web_search_options => '{}' ],
    [ chat_template => '"x"' ], [ guided_json => '{}' ], [ guided_regex => '"(a+)+b"' ],
    [ structured_outputs => '{}' ], [ cache_salt => '"s"' ], [ documents => '[1]' ],
    [ prompt_logprobs => 1 ], [ bad_words => '["x"]' ], [ allowed_token_ids => '[1]' ];
refused('completion', '"logprobs": 0', 'logprobs');
refused('completion', '"suffix": "x"', 'suffix');
refused('completion', '"echo": true', 'echo');

# --- without meaning here, and unknown ---

is(ask('chat', join ', ', map { qq("$_": {"a": ["b"]}) } qw(user metadata store service_tier
    safety_identifier prompt_cache_key prompt_cache_retention))->header('x-llm-ignored'), undef,
    'what only an account has is accepted');
my $r = ask('chat', '"foo": 1, "bar": null, "foo2": {}');
is($r->status, 200, 'unknown fields are ignored');
is($r->header('x-llm-ignored'), 'foo, bar, foo2', 'and named');
is(ask('chat', '"a\r\nSet-Cookie: x": 1, "\u00e9\u001b[31m": 1')->header('x-llm-ignored'),
    'a??Set-Cookie??x, ????31m', 'harmlessly');
is(ask('chat', '"": 1, "?": 1')->header('x-llm-ignored'), '?', 'even without a name');
$r = ask('chat', join ', ', map { sprintf '"%s%d": 1', 'n' x 40, $_ } 1 .. 200);
is($r->status, 200, 'many unknown fields');
ok(length $r->header('x-llm-ignored') < 512, 'are not all named');
$r = ask('chat', join ', ', map { sprintf '"n%d": 1', $_ } 1 .. 200);
like($r->header('x-llm-ignored'), qr/^n1, n2, .*, \.\.\.$/, 'and it is said that they are not');
$r = ask('chat', join ', ', map { qq("n$_": 1) } 1 .. 300);
is($r->status, 400, 'more members than anybody needs');
$r = ask('chat', '"foo": 1', '/strict');
is($r->status, 400, 'llm_unknown_fields reject');
is($r->json->{error}{param}, 'foo', 'names the field');
is(ask('chat', '"user": "me", "n": 1', '/strict')->status, 200, 'but not those that are known');

# --- messages ---

sub messages {
    my ($messages, $members) = @_;

    $client->request('POST', '/v1/chat/completions', keepalive => 1,
        body => qq({"messages": $messages) . ($members ? ", $members" : '') . '}');
    my $r = $client->response;
    $r->body;
    return $r;
}

sub bad_messages {
    my ($messages, $param, $name) = @_;
    my $r = messages($messages);

    $name //= $messages;
    is($r->status, 400, "$name: 400") or return;
    is($r->json->{error}{param}, $param, "$name: param");
}

my $saw = seen(messages('[{"role": "system", "content": "s"},
    {"role": "developer", "content": [{"type": "text", "text": "d"}, {"type": "text", "text": "e"}]},
    {"role": "user", "content": "u", "name": "me"},
    {"role": "assistant", "content": null, "reasoning_content": "hm", "refusal": null,
     "audio": null, "function_call": null, "annotations": [],
     "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "7", "name": "f"},
    {"role": "user", "content": ""}]'));
is_deeply($saw->{messages}, [
    { role => 'system', content => 's' },
    { role => 'system', content => 'de' },
    { role => 'user', content => 'u', name => 'me' },
    { role => 'assistant', reasoning_content => 'hm', tool_calls => [
        { id => 'c1', name => 'f', arguments => '{}' }, { id => 'c2', name => 'g', arguments => '' } ] },
    { role => 'tool', content => '7', tool_call_id => 'c1', name => 'f' },
    { role => 'user', content => '' } ], 'messages of every role') or diag(explain($saw));

$saw = seen(messages('[{"role": "user", "content": "u"},
    {"role": "assistant", "content": "begin", "prefix": true}]'));
ok((grep { $_ eq 'continue_final' } @{ $saw->{flags} }), 'prefix');
is($saw->{messages}[1]{content}, 'begin', 'prefix: content');

bad_messages(@$_) for
    [ '[]', 'messages' ], [ 'null', 'messages' ], [ '"x"', 'messages' ], [ '{}', 'messages' ],
    [ '[1]', 'messages[0]' ], [ '[[]]', 'messages[0]' ], [ '[null]', 'messages[0]' ],
    [ '[{}]', 'messages[0].role' ], [ '[{"role": "user"}]', 'messages[0].content' ],
    [ '[{"role": "robot", "content": "x"}]', 'messages[0].role' ],
    [ '[{"role": 1, "content": "x"}]', 'messages[0].role' ],
    [ '[{"role": "function", "content": "x"}]', 'messages[0].role' ],
    [ '[{"content": "x"}]', 'messages[0].role' ],
    [ '[{"role": "user", "content": null}]', 'messages[0].content' ],
    [ '[{"role": "user", "content": 1}]', 'messages[0].content' ],
    [ '[{"role": "user", "content": []}]', 'messages[0].content' ],
    [ '[{"role": "user", "content": ["x"]}]', 'messages[0].content' ],
    [ '[{"role": "user", "content": [{"type": "text"}]}]', 'messages[0].content' ],
    [ '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]',
        'messages[0].content' ],
    [ '[{"role": "user", "content": "x"}, {"role": "assistant"}]', 'messages[1].content' ],
    [ '[{"role": "tool", "content": "x"}]', 'messages[0].tool_call_id' ],
    [ '[{"role": "tool", "tool_call_id": 1, "content": "x"}]', 'messages[0].tool_call_id' ],
    [ '[{"role": "user", "tool_call_id": "1", "content": "x"}]', 'messages[0].tool_call_id' ],
    [ '[{"role": "user", "tool_calls": [], "content": "x"}]', 'messages[0].tool_calls' ],
    [ '[{"role": "user", "name": 1, "content": "x"}]', 'messages[0].name' ],
    [ '[{"role": "assistant", "reasoning_content": 1, "content": "x"}]',
        'messages[0].reasoning_content' ],
    [ '[{"role": "assistant", "tool_calls": [{"id": "1"}]}]', 'messages[0].tool_calls' ],
    [ '[{"role": "assistant", "tool_calls": {}}]', 'messages[0].tool_calls' ],
    [ '[{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f",
        "arguments": {}}}]}]', 'messages[0].tool_calls' ],
    [ '[{"role": "user", "content": "x", "prefix": true}]', 'messages[0].prefix' ],
    [ '[{"role": "assistant", "content": "x", "prefix": 1}]', 'messages[0].prefix' ],
    [ '[{"role": "assistant", "content": "x", "prefix": true}, {"role": "user", "content": "y"}]',
        'messages[0].prefix' ];
is(messages('[{"role": "user", "content": "x", "cache_control": {}}]')->header('x-llm-ignored'),
    'messages.cache_control', 'an unknown field of a message');
$r = messages('[' . join(',', ('{"role":"user","content":""}') x 30_000) . ']');
is($r->status, 200, 'very many messages');

# --- tools ---

my $tool = '{ "type": "function", "function": {"name": "f", "parameters": {"a": 1.0, "\u0062": [ ]}} }';
$saw = seen(ask('chat', qq("temperature": 0.5, "tools" : [ $tool ] , "top_p": 1)));
is($saw->{tools}, "[ $tool ]", "tools: the request's own bytes");
is($saw->{tool_choice}, 0, 'auto');
is(seen(ask('chat', qq("\\u0074ools": [$tool], "x\\"y": 1)))->{tools}, "[$tool]",
    'under a name with an escape');
is(seen(ask('chat', '"tools": []'))->{tools}, undef, 'no tools');
is(seen(ask('chat', qq("tools": [$tool], "tool_choice": $_->[0])))->{tool_choice}, $_->[1],
    "tool_choice $_->[0]")
    for [ '"auto"', 0 ], [ '"none"', 1 ], [ '"required"', 2 ],
    [ '{"type": "function", "function": {"name": "f"}}', 3 ];
refused('chat', qq("tools": $_), 'tools')
    for '{}', '1', '"x"', '[1]', '[{}]', '[{"type": "function"}]',
    '[{"type": "function", "function": {"name": ""}}]',
    '[{"type": "web_search", "function": {"name": "f"}}]';
refused('chat', qq("tools": [$tool], "tool_choice": $_), 'tool_choice')
    for '1', '"any"', '{}', '{"type": "function", "function": {"name": "g"}}', '[]';
refused('chat', '"tool_choice": "auto"', 'tool_choice');
is(ask('chat', '"tool_choice": "none"')->status, 200, 'no choice of no tools');

# --- prompts ---

sub prompt {
    my ($prompt, $members) = @_;

    $client->request('POST', '/v1/completions', keepalive => 1,
        body => qq({"prompt": $prompt) . ($members ? ", $members" : '') . '}');
    my $r = $client->response;
    $r->body;
    return $r;
}

is_deeply(seen(prompt('"a\u0000b"'))->{prompts}, undef, 'a NUL is refused');
is_deeply(seen(prompt($_->[0]))->{prompts}, $_->[1], "prompt $_->[0]")
    for [ '""', [''] ], [ '["a"]', ['a'] ], [ '[1, 2]', [ [ 1, 2 ] ] ];
for my $case ([ '["a", "b"]', [ 'a', 'b' ] ], [ '[[1], [2, 2147483647]]', [ [1], [ 2, 2147483647 ] ] ]) {
    my $r = prompt($case->[0]);
    is_deeply(JSON::PP->new->decode($r->text(0))->{prompts}, $case->[1], "prompts $case->[0]");
    is(scalar @{ $r->json->{choices} }, 2, 'a choice for each');
}
for my $bad ('[]', 'null', '1', '{}', 'true', '[[]]', '[1, "a"]', '["a", 1]', '[["a"]]', '[1.5]',
    '[-1]', '[2147483648]', '[[1], "a"]', '["a", [1]]', '[null]', '[{}]', '[1, null]') {
    my $r = prompt($bad);
    is($r->status, 400, "prompt $bad");
    is($r->json->{error}{param}, 'prompt', "prompt $bad: param");
}
is(prompt('[' . join(',', ('"a"') x 128) . ']')->status, 200, '128 prompts');
is(prompt('[' . join(',', ('"a"') x 129) . ']')->status, 400, '129 prompts');
is(prompt('[' . join(',', ('"a"') x 100_000) . ']')->status, 400, 'very many prompts');
is(prompt('[' . join(',', (7) x 130_000) . ']', '"stream": true')->status, 200,
    'a prompt of 130,000 ids');
$client->request('POST', '/v1/completions', keepalive => 1, body => '{}');
is($client->response->json->{error}{param}, 'prompt', 'no prompt');

# --- what is not there is never told of ---

unlike($nginx->error_log, qr/Set-Cookie|"content"|robot/, 'nothing of a request in the log');

$t->finish;
