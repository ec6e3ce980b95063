# Fetches and posts with Net::HTTP: get.rb ORIGIN
require "digest"
require "net/http"

def tell(answer)
  puts "#{answer.code} #{answer.body.bytesize} #{Digest::SHA256.hexdigest(answer.body)}"
end

origin = URI(ARGV[0])
Net::HTTP.start(origin.host, origin.port, use_ssl: true) do |http|
  tell(http.get("/bytes/70000"))
  tell(http.post("/echo", "0123456789" * 5000))
end
