package LLM::Test;

# The tests' harness: starts what a test needs in a directory of its own and looks, at the end of
# every test, for what must never be there. Core Perl only.
#
#   use lib 't/lib';
#   use LLM::Test;                              # Test::More comes along
#
#   my $t = LLM::Test->new;
#   my $engine = $t->fake_engine(script => 'tokens=5');
#   my $nginx = $t->nginx(location => 'llm_max_tokens 100;');
#
#   my $r = $nginx->post('/v1/completions', { model => 'fake', prompt => 'every=10' });
#   is($r->status, 200);
#   is($r->text, 't0 t1 t2 t3 t4');
#
#   $t->finish;                                 # the free checks, then done_testing
#
# Engines (LLM::Engine)
#   $t->fake_engine(name => 'fake', script => WORDS, set => WORDS, arena => BYTES, ring => N)
#   $t->engine(model => 'models/demo', name => 'demo', args => [ '--numerics', 'exact', … ])
# The first engine's socket is what nginx gets unless `engine` says otherwise.
#
# Redis (LLM::Redis)
#   $t->redis(maxmemory => '64mb', …)    a redis-server of conf/redis.conf; $t->relay($redis)
#   $t->secret                           the path of a secret file
#
# nginx (LLM::Nginx; nginx_new only makes it: ->test is nginx -t, ->start runs it)
#   $t->nginx(location => TEXT, server => TEXT, http => TEXT, main => TEXT)
#       text added at these levels of a configuration with one server and
#       `location /v1/ { llm_pass …; llm_tenant test; }`
#   pass => TEXT       instead of those two directives
#   engine => $engine  its socket
#   conf => TEXT       the whole configuration: %%GLOBALS%% (main level), %%GLOBALS_HTTP%%,
#                      %%PORT%%, %%PORT2%%, …, %%SOCK%%, %%MODULE%%, %%DIR%% are replaced
#   workers => N       (1);  single => 1: master_process off
#   connections => N   worker_connections (4096)
#   debug => 1         error_log at debug
#   preload => FILE    a shared object for LD_PRELOAD, its path without a space
#   env => {…}         more of the environment
#   no_module => 1     no load_module, for tests of the harness itself
#
# Also
#   $t->dir, $t->port (a free one, held for the test), $t->file(NAME, TEXT) (returns its path)
#   $t->certificate        makes tls.crt and tls.key in the directory, for ssl_certificate
#   $t->allow(qr/…/)       an alert that the test provokes on purpose
#   $t->no_leak_check      for a test that leaves engines in a state of no return
#
# The free checks
#   1. nginx ends by itself after QUIT, and its error log has no [alert] and no [emerg]
#   2. no sanitizer reported anything, in any process
#   3. no slot, session or page is left: every engine that lives is idle, and the fake one has no
#      request (while nginx still runs), then no session (when it is gone); engines stop cleanly
#
# Environment: LLM_BUILD (build), LLM_NGINX (/usr/sbin/nginx), LLM_SANITIZE (as make's SANITIZE),
# LLM_DEVICE (what engines compute on: their --device),
# LLM_KEEP=1 keeps the directory, LLM_LONG=1 asks for full counts (long()), LLM_SOAK=N for so many
# seconds of a soak.

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter 'import';
use File::Temp ();
use IO::Handle;
use IO::Socket::INET;
use LLM::Client;
use LLM::Engine;
use LLM::Nginx;
use LLM::Process qw(slurp wait_until);
use LLM::Redis;
use Scalar::Util ();
use Test::More;
use Time::HiRes qw(time sleep);

our @EXPORT = (@Test::More::EXPORT, qw(long slurp wait_until time sleep));

my @all;

# so that END runs
$SIG{$_} = sub { exit 1 } for qw(INT TERM HUP);

# what hangs is a failure, not a wait for the end of time
$SIG{ALRM} = sub { diag('still not done: something hangs'); exit 1 };
alarm(($ENV{LLM_LONG} ? 7200 : 600) + ($ENV{LLM_SOAK} // 0));

# The count for a check, or for check-long.
sub long {
    my ($short, $long) = @_;

    return $ENV{LLM_LONG} ? $long : $short;
}

sub new {
    my ($class) = @_;
    my $self = bless {
        build => abs_path($ENV{LLM_BUILD} // 'build'),
        nginx => $ENV{LLM_NGINX} // '/usr/sbin/nginx',
        sanitize => $ENV{LLM_SANITIZE} // '',
        dir => File::Temp->newdir('llm-XXXXXX', TMPDIR => 1, CLEANUP => !$ENV{LLM_KEEP}),
        engines => [], nginxes => [], allowed => [],
    }, $class;

    diag("directory: $self->{dir}") if $ENV{LLM_KEEP};
    push @all, $self;
    Scalar::Util::weaken($all[-1]);
    return $self;
}

sub dir { "$_[0]{dir}" }

sub file {
    my ($self, $name, $text) = @_;
    my $path = $self->dir . "/$name";

    open(my $f, '>:raw', $path) or die "$path: $!";
    print $f $text;
    close $f;
    return $path;
}

# Below the ports that the kernel gives to outgoing connections; two tests that run at once see
# each other by the UDP port of the same number, which is held.
sub port {
    my ($self) = @_;

    for (1 .. 1000) {
        my $port = 20000 + int rand 12000;
        my $held = IO::Socket::INET->new(Proto => 'udp', LocalAddr => "127.0.0.1:$port") or next;
        IO::Socket::INET->new(Proto => 'tcp', LocalAddr => "127.0.0.1:$port", Listen => 1)
            or next;
        push @{ $self->{ports} }, $held;
        return $port;
    }
    die 'no free port';
}

sub certificate {
    my ($self) = @_;
    my $dir = $self->dir;

    system("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
            . " -subj /CN=localhost -keyout $dir/tls.key -out $dir/tls.crt 2>$dir/openssl.log") == 0
        or die 'openssl: ' . slurp("$dir/openssl.log");
}

# --- engines ---

sub _add_engine {
    my ($self, $argv, %o) = @_;
    my $n = @{ $self->{engines} };
    my $socket = $self->dir . "/e$n.sock";
    my $engine = LLM::Engine->new(
        socket => $socket, argv => [ @$argv, '--listen', "unix:$socket" ],
        log => $self->dir . "/engine$n.log", env => { $self->_sanitizer_env(1) }, %o);

    push @{ $self->{engines} }, $engine;
    return $engine->start;
}

sub fake_engine {
    my ($self, %o) = @_;
    my @argv = ("$self->{build}/fake-engine", '--control');

    for my $name (qw(name script set arena ring)) {
        push @argv, "--$name", $o{$name} if defined $o{$name};
    }
    return $self->_add_engine(\@argv, fake => 1);
}

sub engine {
    my ($self, %o) = @_;

    return $self->_add_engine([
        "$self->{build}/llm-engine", '--model', $o{model} // 'models/demo',
        '--served-model-name', $o{name} // 'demo',
        ($ENV{LLM_DEVICE} ? ('--device', $ENV{LLM_DEVICE}) : ()), @{ $o{args} // [] }
    ], %o{grep { exists $o{$_} } 'load_timeout'});
}

# --- Redis ---

sub redis {
    my ($self, %conf) = @_;
    my $name = 'redis' . $self->{n_redis}++;
    my $dir = $self->dir;

    return LLM::Redis->new(conf => \%conf, dir => $dir, socket => "$dir/$name.sock",
        port => $self->port, log => "$dir/$name.log")->start;
}

sub relay {
    my ($self, $redis) = @_;
    my $name = 'relay' . $self->{n_relays}++;
    my $dir = $self->dir;

    return LLM::Redis::Relay->new(redis => $redis, socket => "$dir/$name.sock",
        log => "$dir/$name.log");
}

sub secret {
    my ($self) = @_;
    my $path = $self->dir . '/secret';

    if (!-e $path) {
        $self->file('secret', join '', map { chr rand 256 } 1 .. 32);
        chmod 0400, $path or die "$path: $!";
    }
    return $path;
}

# --- nginx ---

sub _preload {
    my ($self) = @_;
    my $runtime = $self->{sanitize} =~ /address/ ? 'asan' : $self->{sanitize} =~ /thread/ ? 'tsan'
        : return;
    my $path = `gcc -print-file-name=lib$runtime.so`;

    chomp $path;
    return $path;
}

# The stock nginx leaks by itself at exit; what is ours is looked for leaks. (nginx's workers write
# their reports to its error log whatever log_path says: it takes standard error there.)
sub _sanitizer_env {
    my ($self, $leaks) = @_;
    my $log = $self->dir . '/sanitizer';

    return () if !$self->{sanitize};
    return (
        ASAN_OPTIONS => "log_path=$log:detect_leaks=" . ($leaks ? 1 : 0),
        UBSAN_OPTIONS => "log_path=$log:print_stacktrace=1",
        TSAN_OPTIONS => "log_path=$log:suppressions=" . abs_path('t/lib/tsan.supp'),
    );
}

sub _globals {
    my ($self, %o) = @_;
    my $text = "pid nginx.pid;\n"
        . 'error_log error.log ' . ($o{debug} ? 'debug' : 'info') . ";\n";

    $text .= "load_module $self->{build}/ngx_http_llm_module.so;\n" if !$o{no_module};
    $text .= 'worker_processes ' . ($o{workers} // 1) . ";\n";
    $text .= "master_process off;\n" if $o{single};
    # the workers must reach the test's directory and the engine's socket
    $text .= "user root;\n" if $> == 0;
    # the binary upgrade starts the new nginx with no more of the environment than this
    $text .= "env $_;\n" for map { $self->{sanitize} ? $_ : () }
        qw(LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS);
    return $text;
}

my $globals_http = <<'EOT';
access_log access.log;
client_body_temp_path client_body;
proxy_temp_path proxy;
fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi;
scgi_temp_path scgi;
EOT

my $conf = <<'EOT';
%%GLOBALS%%
MAIN
events { worker_connections CONNECTIONS; }
http {
    %%GLOBALS_HTTP%%
    HTTP
    server {
        listen 127.0.0.1:%%PORT%%;
        SERVER
        location /v1/ {
            PASS
            LOCATION
        }
    }
}
EOT

sub _conf {
    my ($self, $nginx, %o) = @_;
    my $text = $o{conf};
    my $engine = $o{engine} // $self->{engines}[0];
    my $sock = $engine ? $engine->socket : $self->dir . '/none.sock';

    if (!defined $text) {
        my $pass = $o{pass} // "llm_pass unix:%%SOCK%%;\nllm_tenant test;";
        my $connections = $o{connections} // 4096;
        $text = $conf;
        $text =~ s/PASS$/$pass/m;
        $text =~ s/CONNECTIONS/$connections/;
        for my $level (qw(main http server location)) {
            my $added = $o{$level} // '';
            my $name = uc $level;
            $text =~ s/^(\s*)$name$/$1$added/m;
        }
    }

    my $globals = $self->_globals(%o);
    $text =~ s/%%GLOBALS%%/$globals/;
    $text =~ s/%%GLOBALS_HTTP%%/$globals_http/;
    $text =~ s/%%SOCK%%/$sock/g;
    $text =~ s/%%DIR%%/$self->dir/ge;
    $text =~ s{%%MODULE%%}{$self->{build}/ngx_http_llm_module.so}g;
    $text =~ s/%%PORT(\d*)%%/$nginx->{ports}{$1} \/\/= $self->port/ge;
    return $text;
}

sub nginx_new {
    my ($self, %o) = @_;
    my $dir = $self->dir . '/nginx' . @{ $self->{nginxes} };
    my $preload = join ' ', $self->_preload, $o{preload} // ();
    my $nginx = LLM::Nginx->new(
        dir => $dir, binary => $self->{nginx}, single => $o{single},
        env => { $self->_sanitizer_env(0), ($preload ? (LD_PRELOAD => $preload) : ()),
            %{ $o{env} // {} } });

    mkdir $dir or die "$dir: $!";
    $nginx->{ports}{''} = $self->port;
    $nginx->{port} = $nginx->{ports}{''};
    $nginx->{expand} = sub { $self->_conf($nginx, %o, @_) };
    $nginx->write_conf($nginx->{expand}->());
    push @{ $self->{nginxes} }, $nginx;
    return $nginx;
}

sub nginx {
    my ($self, %o) = @_;

    return $self->nginx_new(%o)->start;
}

# --- the free checks ---

sub allow {
    my ($self, $pattern) = @_;

    push @{ $self->{allowed} }, $pattern;
}

sub no_leak_check { $_[0]{no_leak_check} = 1 }

sub _check_idle {
    my ($self, $live) = @_;
    my @busy;

    for my $e (@$live) {
        if (!$e->idle) {
            my $s = $e->state;
            push @busy, join(' ', $e->socket, map { "$_=" . ($s->{$_} // '?') }
                qw(running queued free_pages total_pages));
        }
    }
    return @busy;
}

sub _check_sessions {
    my ($self, $live) = @_;
    my @left;

    for my $e (grep { $_->{fake} } @$live) {
        my $n;
        wait_until(5, sub { $n = $e->counters; $n->{sessions} == 0 && $n->{requests} == 0 })
            or push @left, $e->socket . ": $n->{sessions} sessions, $n->{requests} requests";
    }
    return @left;
}

sub _check_engines_stop {
    my ($self, $live) = @_;

    return map { my $s = $_->stop; $s == 0 ? () : $_->socket . ": wait status $s" } @$live;
}

sub _alerts {
    my ($self) = @_;
    my @lines = map { grep { /\[(?:alert|emerg)\]/ } split /^/, $_->error_log }
        @{ $self->{nginxes} };

    for my $allowed (@{ $self->{allowed} }) {
        @lines = grep { $_ !~ $allowed } @lines;
    }
    return @lines;
}

sub _sanitizer_reports {
    my ($self) = @_;
    my $pattern = qr/(?:Address|Thread|Leak|Memory)Sanitizer|runtime error:/;
    my @reports;

    for my $file (glob($self->dir . '/sanitizer* ' . $self->dir . '/*.log ' . $self->dir
                . '/nginx*/*.log')) {
        my $text = slurp($file);
        push @reports, "$file:\n" . substr($text, 0, 4000) if $text =~ $pattern;
    }
    return @reports;
}

sub _none {
    my ($what, @found) = @_;

    local $Test::Builder::Level = $Test::Builder::Level + 2;
    ok(!@found, $what) or diag(@found > 20 ? (@found[ 0 .. 19 ], '…') : @found);
}

# The free checks without the plan, for a test that goes on with a new LLM::Test.
sub check {
    my ($self) = @_;
    my @running = grep { $_->{started} } @{ $self->{nginxes} };
    my @live = grep { $_->{process} && $_->alive } @{ $self->{engines} };
    my (@leaks, @stuck);

    LLM::Client->close_all;
    push @leaks, $self->_check_idle(\@live);
    for my $nginx (@running) {
        $nginx->quit or push @stuck, "nginx at port $nginx->{port} does not quit\n";
        $nginx->kill_all;
    }
    push @leaks, $self->_check_sessions(\@live), $self->_check_engines_stop(\@live);
    @leaks = () if $self->{no_leak_check};

    _none('no alert and no process that does not quit', @stuck, $self->_alerts);
    _none('no sanitizer report', $self->_sanitizer_reports);
    _none('nothing leaked', map { "$_\n" } @leaks);
    $self->{checked} = 1;
}

sub finish {
    my ($self) = @_;

    $self->check;
    done_testing();
}

# Also after a die: before Perl takes the objects, and with them the directory, apart.
END {
    local $?;
    for my $self (grep { defined } @all) {
        $_->kill_all for grep { $_->{started} } @{ $self->{nginxes} };
        $_->kill for grep { $_->{process} } @{ $self->{engines} };
        diag($_) for $self->{checked} ? () : $self->_sanitizer_reports;
    }
}

1;
