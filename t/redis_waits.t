#!/usr/bin/perl

# Nobody waits for Redis, however long its deadline: behind one that hangs, at a place that takes no
# connections, and behind one that stops in the middle, a request's first token and its end come
# long before, and its answer is what it is without Redis.

use strict;
use warnings;

use lib 't/lib';
use IO::Socket::INET;
use LLM::Test;

my $t = LLM::Test->new;
srand(31);

my $deadline = 2;

# sanitizers are slow, and only look for what they look for
my ($soon, $n_prompts) = $ENV{LLM_SANITIZE} ? (60, 2) : (1, 6);

my @common = ('--max-context', '512', '--latent-memory', '64m', '--max-batch-tokens', '64');
my $redis = $t->redis;
my $relay = $t->relay($redis);

# An engine and an nginx before it.
sub node {
    my ($url) = @_;
    my @redis = $url ? ('--redis', $url, '--secret-file', $t->secret, '--redis-deadline-ms',
        1000 * $deadline) : ();
    my $engine = $t->engine(args => [ @common, @redis ]);

    return { engine => $engine, nginx => $t->nginx(engine => $engine) };
}

# Its answer, and how long its first token and its end took.
sub ask {
    my ($node, $prompt) = @_;
    my $c = $node->{nginx}->client(timeout => 60);
    my ($text, $first, $last) = ('');

    $c->request('POST', '/v1/completions', json => { prompt => $prompt, max_tokens => 4,
        temperature => 0, ignore_eos => \1, stream => \1 });
    my $r = $c->response;
    while (my $e = $r->event) {
        $last = $e->{time} - $r->times->{asked};
        my $piece = ($e->{json} // {})->{choices}[0]{text} // next;
        $first //= $last;
        $text .= $piece;
    }
    return ($r->done ? $text : 'failed: ' . $r->status, $first // 'never', $last // 'never');
}

my @prompts = map { [ map { 300 + int rand 3000 } 1 .. 300 ] } 1 .. $n_prompts;
my $plain = node();
my @texts = map { (ask($plain, $_))[0] } @prompts;

# All prompts, one after the other. One may be late, as the machine may be busy: what becomes of the
# loads, below, tells the same without a clock.
sub is_not_held_up {
    my ($node, $name) = @_;
    my ($wrong, $late, $longest) = (0, 0, 0);

    for my $i (0 .. $#prompts) {
        my ($text, $first, $last) = ask($node, $prompts[$i]);

        $wrong++ if $text ne $texts[$i];
        $late++ if $first eq 'never' || $last >= $soon;
        $longest = $last if $last > $longest;
    }
    is($wrong, 0, "$name: every answer is right");
    cmp_ok($late, '<=', 1, "$name: nor late") or diag("$longest s at most");
}

# --- what hangs from the start ---

$relay->set('silent');
my $hangs = node($relay->url);
is_not_held_up($hangs, 'a server that does not say a word');
is($hangs->{engine}->redis->{connects}, 0, 'that was no connection');
$hangs->{engine}->stop;

# A port that takes no connections: its backlog is full, further SYNs are dropped.
my $hole = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 0) or die "hole: $!";
my @inside = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $hole->sockport,
    Blocking => 0) } 1 .. 4;
my $nowhere = node('redis://127.0.0.1:' . $hole->sockport);
is_not_held_up($nowhere, 'a place that takes no connections');
is($nowhere->{engine}->redis->{connects}, 0, 'there was none');
$nowhere->{engine}->stop;

# --- what hangs in the middle ---

# Loads begin at a Redis that is fast, and nothing of them comes.
$relay->set('');
my $used = node($relay->url);
sub counts { return $used->{engine}->redis }

is_not_held_up($used, 'a good Redis');
ok(wait_until(20, sub { counts()->{saved} >= 4 * @prompts }), 'pages are saved');
for my $how ('silent', 'rate=1') {
    $relay->set('');
    $used->{engine}->stop;
    $used->{engine}->start;
    ok(wait_until(20, sub { (ask($used, [ 5 ]))[0] !~ /^failed/ && counts()->{connects} >= 2 }),
        "$how: it is connected");
    $relay->set($how);
    my $before = counts();
    is_not_held_up($used, "$how from then on");
    cmp_ok(counts()->{loads}, '>', $before->{loads}, "$how: pages were asked for");
    is(counts()->{hits}, $before->{hits}, "$how: and did not come");
    ok(wait_until($soon, sub { counts()->{unwanted} > $before->{unwanted} }),
        "$how: they were given up, before they were late");
}

$t->finish;
