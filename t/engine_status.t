#!/usr/bin/perl

# llm_status on a real engine: what it says of steps, pages and the cache is what has happened.

use strict;
use warnings;

use lib 't/lib';
use LLM::Metrics;
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->engine;
my $nginx = $t->nginx(
    workers => 2,
    http => 'llm_status_zone llm:64k;',
    server => 'location = /metrics { llm_status prometheus; }');
my %of = (engine => 'unix:' . $engine->socket);

sub metrics {
    my $m = LLM::Metrics->new($nginx->get('/metrics')->body);

    is_deeply([ $m->wrong ], [], 'metrics as Prometheus reads them');
    return $m;
}

ok(wait_until(5, sub { (metrics()->value('llm_engine_sessions', %of) // 0) == 2 }), 'a session a worker');
my $before = metrics();
is($before->value('llm_engine_up', %of), 1, 'it is there');
ok($before->value('llm_engine_pages', %of) > 0, 'it has pages');
is($before->value('llm_engine_free_pages', %of), $before->value('llm_engine_pages', %of),
    'nobody uses them');

my $prompt = 'The quick brown fox jumps over the lazy dog. ' x 40;
my @usage;
for (1 .. 2) {
    my $r = $nginx->post('/v1/completions', { prompt => $prompt, max_tokens => 20, temperature => 0,
        ignore_eos => \1 });
    is($r->status, 200, 'an answer');
    push @usage, $r->usage;
}
my $after;
ok(wait_until(5, sub {
    $after = metrics();
    return ($after->value('llm_tenant_requests_total', tenant => 'test') // 0) == 2
        && $after->value('llm_engine_cache_hit_tokens_total', %of, tier => 'memory') > 0;
}), 'both were counted');
my $steps = $after->value('llm_engine_steps_total', %of) - $before->value('llm_engine_steps_total', %of);
ok($steps >= 40 && $steps < 100, 'a step a token, and some for the prompts') or diag($steps);
is($after->sum('llm_completion_tokens_total'), 40, 'tokens');
is($after->sum('llm_prompt_tokens_total'), 2 * $usage[0]{prompt_tokens}, 'of the prompts');
my $cached = $usage[1]{prompt_tokens_details}{cached_tokens};
ok($cached > 64, 'the second prompt was there');
is($after->sum('llm_cached_tokens_total'), $cached, 'which was counted');
cmp_ok($after->value('llm_engine_cache_hit_tokens_total', %of, tier => 'memory'), '>=', $cached,
    'by the engine, too');
ok($after->value('llm_engine_cache_bytes', %of, tier => 'memory') > 0, 'its pages stay');
ok($after->value('llm_engine_prefill_tokens_per_second', %of) > 0, 'it knows how fast it reads');
is($after->value('llm_queue_seconds_count'), 2, 'waited twice');
ok($after->value('llm_first_token_seconds_sum') > 0, 'first tokens took time');

$t->finish;
