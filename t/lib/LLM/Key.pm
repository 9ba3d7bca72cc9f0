package LLM::Key;

# API keys as engine/ipc/key.h defines them, written once more.
#
#   my $key = LLM::Key->new(tenant => 'acme', settings => 'weight=3', id => 'a');
#   $key->text                        what a request shows
#   $key->line                        its line of the key file, with the newline
#   $key->bearer, $key->x_api_key     hashes of headers
#   $key->id                          of SUBMIT, in hexadecimal

use strict;
use warnings;

use Compress::Zlib qw(crc32);
use Digest::SHA qw(sha256_hex);

my $n = 0;

sub new {
    my ($class, %o) = @_;
    my $secret = $o{secret} // join '', map { chr int rand 256 } 1 .. 32;
    my $bits = unpack 'B*', $secret . pack('N', crc32($secret));

    $bits .= '0' x (-length($bits) % 5);
    my @letters = ('a' .. 'z', 2 .. 7);
    my $text = 'sk-llm-' . join '', map { $letters[ oct "0b$_" ] } unpack '(A5)*', $bits;
    return bless { id => 'key' . $n++, tenant => 'tenant', settings => '', %o, text => $text },
        $class;
}

sub text { $_[0]{text} }
sub id { substr sha256_hex($_[0]{text}), 0, 32 }
sub bearer { { Authorization => "Bearer $_[0]{text}" } }
sub x_api_key { { 'x-api-key' => $_[0]{text} } }

sub line {
    my ($self) = @_;

    return "$self->{id} " . sha256_hex($self->{text}) . " $self->{tenant} $self->{settings}\n";
}

1;
