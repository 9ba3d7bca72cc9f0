#!/usr/bin/perl

# The module with the real engine and the demo model: several choices, and cached prefixes under
# each llm_cache_scope.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
my $engine = $t->engine;
my $nginx = $t->nginx(
    http => <<'EOT',
        log_format llm '$arg_name $llm_prompt_tokens $llm_cached_tokens $llm_queue_time '
                       '$llm_first_token_time';
        access_log llm.log llm;
EOT
    server => join "\n", map { "location /$_/v1/ { llm_pass unix:%%SOCK%%;"
        . " llm_tenant \$http_x_tenant; llm_cache_scope $_; }" } qw(tenant public off));

sub chat {
    my ($content, %more) = @_;

    return $nginx->post('/v1/chat/completions',
        { messages => [ { role => 'user', content => $content } ], %more });
}

# --- n ---

my %draw = (max_tokens => 12, temperature => 1, seed => 5);
my $three = chat('Tell me a story.', %draw, n => 3);
is($three->status, 200, 'n 3') or diag($three->body);
my @texts = map { $_->{message}{content} } @{ $three->json->{choices} };
is(scalar @texts, 3, 'three choices');
is(scalar keys %{ { map { $_ => 1 } @texts } }, 3, 'each its own');
my $one = chat('Tell me a story.', %draw);
is($one->text, $texts[0], 'the first is what one alone would be');
my ($usage, $alone) = map { $_->json->{usage} } $three, $one;
is($usage->{prompt_tokens}, $alone->{prompt_tokens}, 'the prompt counts once');
is($usage->{completion_tokens}, 36, 'the answers count all');
my $streamed = chat('Tell me a story.', %draw, n => 3, stream => \1,
    stream_options => { include_usage => \1 });
my @usages = grep { ref $_->{json} && $_->{json}{usage} } $streamed->events;
is(scalar @usages, 1, 'usage once');
is_deeply([ map { $streamed->text($_) } 0 .. 2 ], \@texts, 'streamed, they are the same');
is_deeply([ map { $streamed->finish_reason($_) } 0 .. 2 ], [ ('length') x 3 ], 'and end');
my $each = $nginx->post('/v1/completions',
    { prompt => [ 'Once upon a time', 'The dog' ], n => 2, %draw });
is_deeply([ map { $_->{index} } @{ $each->json->{choices} } ], [ 0 .. 3 ], 'n for each prompt');
is($each->json->{choices}[2]{text},
    $nginx->post('/v1/completions', { prompt => 'The dog', %draw })->text, 'in order');

# --- whose prefixes are found, and what is told of it ---

my $text = join ' ', map { "word$_" } 1 .. 150;
my %hit;

for my $scope (qw(tenant public off)) {
    for my $tenant (qw(a a b)) {
        my $name = "$scope-$tenant" . $hit{$scope}{$tenant}++;
        my $client = $nginx->client;
        my $r = $client->post("/$scope/v1/completions?name=$name",
            { prompt => $text, max_tokens => 1 }, headers => { 'X-Tenant' => $tenant });
        my $u = $r->json->{usage};
        my $hits = $name eq 'tenant-a1' || $name =~ /^public-(?:a1|b0)$/;
        my $cached = $u->{prompt_tokens_details}{cached_tokens};

        ok($hits ? $cached >= 128 && $cached % 64 == 0 : $cached == 0, "$name: cached")
            or diag("$cached of $u->{prompt_tokens}");
        is_deeply([ @$u{qw(prompt_cache_hit_tokens prompt_cache_miss_tokens)} ],
            [ $cached, $u->{prompt_tokens} - $cached ], "$name: in DeepSeek's words");
        $client->close;
        my $line;
        wait_until(5, sub { ($line) = slurp("$nginx->{dir}/llm.log") =~ /^\Q$name\E (.*)$/m });
        like($line, qr/^$u->{prompt_tokens} $cached \d+\.\d{6} \d+\.\d{6}$/, "$name: logged");
    }
}

$t->finish;
