#!/usr/bin/perl

# The recorded results of the tiny models and the demo model, through build/llm-golden: exact mode
# fed whole and in chunks of 1, 7, 64 and 100 tokens, default mode whole (that chunks change no bit
# is unit/backend_numerics) with latents of both types. Not the demo model under a sanitizer, where it takes ten minutes.

use strict;
use warnings;

use Test::More;

my $build = $ENV{LLM_BUILD} // 'build';
my $device = $ENV{LLM_DEVICE} // 'cpu';
my @tiny = glob("$build/golden/tiny-*");
my @folders = (@tiny, $ENV{LLM_SANITIZE} ? () : 'models/demo');

is(scalar(@tiny), 5, 'five tiny models');

for my $run ([qw(exact)], [qw(default --chunk 0)],
             [qw(default --chunk 0 --latent-dtype fp8)]) {
    my $mode = "@$run";

    open(my $golden, '-|', "$build/llm-golden", '--device', $device, '--numerics', @$run, @folders)
        or die "llm-golden: $!";
    my @lines = <$golden>;
    close($golden);

    is($?, 0, "$mode: within bounds");
    is(scalar(@lines), scalar(@folders), "$mode: a line for each folder");
    note(@lines);
}

done_testing();
