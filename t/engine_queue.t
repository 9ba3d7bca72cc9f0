#!/usr/bin/perl

# The real engine's queue: what is refused at once and why, deadlines, tenants that flood, weights.

use strict;
use warnings;

use lib 't/lib';
use LLM::Test;

my $t = LLM::Test->new;
srand(11);

my $nginx;

sub ids { map { 300 + int rand 3000 } 1 .. shift }

sub start {
    my (@args) = @_;
    my $engine = $t->engine(args => [ '--max-context', '2048', @args ]);

    $nginx = $t->nginx(engine => $engine,
        http => <<'EOT',
            log_format llm '$llm_tenant $status';
            access_log llm.log llm;
            map $http_x_tenant $weight { default 1; heavy 3; }
EOT
        server => <<'EOT');
            llm_tenant $http_x_tenant;
            llm_weight $weight;
            location /a/v1/ { llm_pass unix:%%SOCK%%; }
            location /queue/v1/ { llm_pass unix:%%SOCK%%; llm_queue_timeout 300ms; }
            location /soon/v1/ { llm_pass unix:%%SOCK%%; llm_queue_timeout 4s; }
            location /first/v1/ { llm_pass unix:%%SOCK%%; llm_first_token_timeout 10s; }
EOT
    return $engine;
}

sub send_prompt {
    my ($tenant, $prompt, %more) = @_;
    my $where = delete $more{where} // 'a';
    my $c = $nginx->client(timeout => 120);

    $c->request('POST', "/$where/v1/completions", headers => { 'X-Tenant' => $tenant },
        json => { prompt => $prompt, max_tokens => 1, temperature => 0, ignore_eos => \1, %more });
    return $c;
}

sub waiting {
    my ($engine, $n) = @_;

    return wait_until(10, sub { $engine->state->{queued} == $n });
}

# A stream that runs, and goes on for long.
sub stream {
    my ($tenant) = @_;
    my $c = send_prompt($tenant, [ ids(20) ], max_tokens => 1900, stream => \1);
    my $r = $c->response;

    $r->event;
    return $c;
}

# --- refusals: four sequences run at once, as a step has four rows ---

my $engine = start('--max-batch-tokens', '4', '--max-queue-requests', '4');
my @running = map { stream('flood') } 1 .. 4;
my @waiting = map { send_prompt('flood', [ ids(20) ]) } 1 .. 2;
ok(waiting($engine, 2), 'two wait');
my $begin = time;
my $r = send_prompt('flood', [ ids(20) ])->response;
is($r->status, 429, 'a tenant\'s third is refused');
cmp_ok(time - $begin, '<', 2, 'at once');
is($r->api_error->{code}, 'tenant_full', 'code');
like($r->header('Retry-After') // '', qr/^[1-9]\d?$/, 'with the time to come again');
is(send_prompt('flood', [ ids(20) ], n => 2)->response->status, 429, 'choices count too');
$r = send_prompt('other', [ ids(20) ])->response;
is($r->status, 200, 'another tenant is served, though all places were taken');

# --- deadlines ---

$r = send_prompt('third', [ ids(20) ], where => 'queue', max_tokens => 1)->response;
is($r->status, 200, 'a tenant that has nothing is in time');
$_->reset for @waiting;
ok(waiting($engine, 0), 'clients that leave the queue');
$r = send_prompt('flood', [ ids(20) ], where => 'queue')->response;
is($r->status, 503, 'a deadline in the queue');
is($r->api_error->{code}, 'queue_timeout', 'code');
ok(defined $r->header('Retry-After'), 'with the time to come again');
$_->reset for @running;
ok($engine->idle(10), 'all is given back');
$engine->stop;

$engine = start('--max-batch-tokens', '4', '--max-queue-tokens', '2000',
    '--max-tenant-queue-tokens', '100');
@running = map { stream('flood') } 1 .. 4;
@waiting = (send_prompt('flood', [ ids(90) ]));
ok(waiting($engine, 1), 'ninety tokens wait');
is(send_prompt('flood', [ ids(20) ])->response->status, 429, 'twenty more are too many');
$_->reset for @running, @waiting;
ok($engine->idle(10), 'all is given back');
$engine->stop;

# --- a deadline that cannot be met ---

$engine = start('--max-batch-tokens', '4', '--max-tenant-queue-tokens', '1000000');
@running = map { stream('flood') } 1 .. 4;
wait_until(5, sub { $engine->state->{prefill_rate} > 0 });
my $rate = $engine->state->{prefill_rate};
cmp_ok($rate, '>', 0, 'the model has been timed');
# at twice that rate they take ten seconds
my $n = 1 + int(2 * 10 * $rate / 1500);
@waiting = map { send_prompt('flood', [ ids(1500) ]) } 1 .. $n;
ok(waiting($engine, $n), "$n long prompts wait");
$begin = time;
$r = send_prompt('flood', [ ids(20) ], where => 'first')->response;
is($r->status, 503, 'no first token in time: refused');
is($r->api_error->{code}, 'queue_timeout', 'for the queue\'s length');
cmp_ok(time - $begin, '<', 9, 'not when the time is over');
$r = send_prompt('other', [ ids(20) ], where => 'first', max_tokens => 1)->response;
is($r->status, 200, 'another tenant is served in that time');
$_->reset for @waiting;
ok(waiting($engine, 0), 'clients that leave the queue');

# --- one that can be met, because what is before it leaves before ---

@waiting = map { send_prompt('flood', [ ids(1500) ], where => 'soon') } 1 .. $n;
wait_until(3, sub { $engine->state->{queued} == $n });
my $late = send_prompt('flood', [ ids(20) ], where => 'first');
ok(waiting($engine, 1), 'they give up');
$_->reset for @running;
is($late->response->status, 200, 'and the one behind them has its first token in time');
$_->reset for @waiting;
ok($engine->idle(20), 'all is given back');
$engine->stop;

# --- more than the latent memory holds: 9 pages, 4 of which one of them comes to need ---

$engine = start('--max-context', '512', '--latent-memory', '6m');
my @prompts = map { [ ids(100) ] } 1 .. 4;
my %long = (max_tokens => 150);
my @alone = map { send_prompt('one', $_, %long)->response->text } @prompts;
my $alone = send_prompt('one', $prompts[0], max_tokens => 8, n => 3)->response->text(2);
my @together = map { send_prompt($_ % 2 ? 'one' : 'two', $prompts[$_], %long) } 0 .. $#prompts;
is_deeply([ map { $_->response->text } @together ], \@alone,
    'four that do not fit together: each has its text');
$r = send_prompt('one', $prompts[0], max_tokens => 8, n => 128)->response;
is($r->status, 200, 'more choices than sequences that can run');
is_deeply([ map { $r->text($_) } 0 .. 127 ], [ ($alone) x 128 ], 'all are there');
is($r->usage->{prompt_tokens}, 100, 'prompt_tokens');
is($r->usage->{completion_tokens}, 128 * 8, 'completion_tokens');
ok($engine->idle(10), 'all is given back');
$engine->stop;

# --- weights ---

$engine = start('--max-batch-tokens', '64', '--max-tenant-queue-requests', '100');
my %served;
my @clients = map { send_prompt($_ % 2 ? 'heavy' : 'light', [ ids(300) ]) } 1 .. 40;
ok(wait_until(240, sub { slurp("$nginx->{dir}/llm.log") =~ /^(?:.*\n){16}/ }), 'sixteen are served');
$served{$_}++ for (slurp("$nginx->{dir}/llm.log") =~ /^(heavy|light) 200$/mg)[ 0 .. 15 ];
diag("of the first sixteen: heavy $served{heavy}, light $served{light}");
cmp_ok($served{heavy}, '>=', 10, 'three times the weight, about three times the service');
cmp_ok($served{light}, '>=', 2, 'and the other one is not left out');
$_->reset for @clients;
ok($engine->idle(10), 'all is given back');

$t->finish;
