#!/usr/bin/perl

# llm-engine bench: its figures in both forms, what it refuses, and its end when the weights are
# cut under it.

use strict;
use warnings;

use lib 't/lib';
use File::Copy qw(copy);
use JSON::PP qw(decode_json encode_json);
use LLM::Process qw(slurp wait_until);
use LLM::Test;

my $t = LLM::Test->new;
my $runs = 0;

# Starts it; what it says comes into the file.
sub start {
    my (@args) = @_;
    my $log = $t->dir . '/bench' . $runs++ . '.log';

    return (LLM::Process->start([ "$t->{build}/llm-engine", 'bench', @args ], log => $log), $log);
}

# Its exit code and text.
sub bench {
    my ($process, $log) = start(@_);
    my $status = $process->wait(120);

    return (defined $status ? $status >> 8 : 'none', slurp($log));
}

my @small = ('--batch', '1,2@30', qw(--prompt 40 --tokens 8 --repeat 3 --threads 2));

my ($code, $text) = bench('--model', 'models/demo', @small);
is($code, 0, 'a small bench');
like($text, qr/ is ready after .* MB of weights, \d+ MB for steps, \d+ MB of latents$/m,
    'what was loaded');
my @lines = grep { !/ info: / } split /\n/, $text;
is(scalar @lines, 4, 'a heading, a prompt, two batches');
like($lines[1], qr/^prefill +default +2 +1 +40 +\d+\.\d /, 'tokens a second of the prompt');
like($lines[3], qr/^decode +default +2 +2 +30 +\d+\.\d /, 'and of the larger batch after 30');

($code, $text) = bench('--model', 'models/demo', @small, '--json', '--numerics', 'default,exact');
my $figures = eval { decode_json($text) } // [];
is(scalar @$figures, 6, 'the same in JSON, in two modes');
is(scalar(grep { $_->{tokens_per_second} > 0 && $_->{min} <= $_->{max} } @$figures), 6,
    'every figure is one');

($code, $text) = bench('--model', 'models/demo', '--batch', '1,x');
is($code, 2, 'a list that is none');
like($text, qr/--batch wants up to/, 'is refused by name');
($code, $text) = bench('--model', 'models/demo', '--batch', '1@');
is($code, 2, 'a batch after nothing');
($code) = bench();
is($code, 2, 'no model');

# weights made up for a config.json alone, latents of every type
my $dummy = $t->dir . '/dummy';
my $config = decode_json(slurp('t/data/v2-lite-4/config.json'));
@$config{qw(hidden_size intermediate_size moe_intermediate_size vocab_size)} = (128, 256, 32, 512);
@$config{qw(bos_token_id eos_token_id)} = (0, 1);
mkdir $dummy or die "$dummy: $!";
open(my $f, '>', "$dummy/config.json") or die "$dummy: $!";
print $f encode_json($config);
close $f;
for my $type (qw(f32 bf16 fp8)) {
    ($code, $text) = bench('--model', $dummy, qw(--load-format dummy), '--latent-dtype', $type,
        @small);
    is($code, 0, "made-up weights, latents in $type") or diag($text);
}
($code, $text) = bench('--model', $dummy, @small);
is($code, 1, 'a model without weights is none otherwise');
like($text, qr/neither model\.safetensors nor/, 'for the lack of a file');

my $model = $t->dir . '/model';
mkdir $model or die "$model: $!";
copy($_, $model) or die "$_: $!" for glob 'models/demo/*';

my ($process, $log) = start('--model', $model, qw(--prompt 40 --tokens 1000 --repeat 101));
ok(wait_until(120, sub { slurp($log) =~ /^prefill/m }), 'a long bench');
truncate "$model/model-00002-of-00002.safetensors", 8192 or die "truncate: $!";
my $status = $process->wait(60);
is($status, 1 << 8, 'ends with an error when its weights are cut');
like(slurp($log), qr/^llm-engine bench: .*model-00002-of-00002\.safetensors/m, 'and names the file');

$t->finish;
