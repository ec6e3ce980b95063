# Fetches and posts with LWP: get.pl ORIGIN
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use LWP::UserAgent;

sub tell_of {
    my ($answer) = @_;
    die $answer->status_line . "\n" . $answer->content if $answer->header("Client-Warning");
    print join(" ", $answer->code, length($answer->content), sha256_hex($answer->content)), "\n";
}

my ($origin) = @ARGV;
my $client = LWP::UserAgent->new(keep_alive => 1);
tell_of($client->get("$origin/bytes/70000"));
tell_of($client->post("$origin/echo", Content => "0123456789" x 5000));
