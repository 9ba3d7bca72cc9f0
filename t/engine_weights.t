#!/usr/bin/perl

# The file of the weights is cut while the engine serves from it: the process must not die of
# SIGBUS, and must not go on with zeros for weights. Then weights that are in no file.

use strict;
use warnings;

use lib 't/lib';
use File::Copy qw(copy);
use LLM::Test;

my $t = LLM::Test->new;
my $model = $t->dir . '/model';

mkdir $model or die "$model: $!";
copy($_, $model) or die "$_: $!" for glob 'models/demo/*';

my $engine = $t->engine(model => $model, args => [ '--latent-memory', '64m' ]);
my $nginx = $t->nginx;
my %request = (model => 'demo', prompt => 'Once upon a time', max_tokens => 8);

is($nginx->post('/v1/completions', \%request)->status, 200, 'the whole file serves');

truncate "$model/model-00002-of-00002.safetensors", 8192 or die "truncate: $!";
is($nginx->post('/v1/completions', \%request)->status, 500, 'not with half of it');

my $status = $engine->{process}->wait(10);
ok($status, 'the engine ends');
is($status & 127, 0, 'by itself, not by a signal');
like($engine->log_text, qr/error: .*model-00002-of-00002\.safetensors/, 'and names the file');

unlink glob "$model/*.safetensors*";
my $dummy = $t->engine(model => $model,
    args => [ '--load-format', 'dummy', '--latent-memory', '64m' ]);
$nginx = $t->nginx(engine => $dummy);
my $r = $nginx->post('/v1/completions', { %request, ignore_eos => \1 });
is($r->status, 200, 'made-up weights serve');
is($r->usage->{completion_tokens}, 8, 'and say something');

$t->finish;
