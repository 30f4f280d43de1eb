# Completion of wg4netnsctl(1) by fish.

set -g __wg4netnsctl_valued --cap --credentials --forward --idle --ignore --interface --lifetime --listen --mtu \
    --name --netns --pid --proxy --publish --timeout --transit-fd --transit-netns --transit-pid --via

function __wg4netnsctl_words -d "The command and its operands before the cursor"
    set -l tokens (commandline -opc)
    set -l words
    set -l is_value
    for token in $tokens[2..]
        if contains -- "$words[1]" run exec; and set -q words[2]
            set -a words $token # any token: it belongs to the command that is run
        else if test -n "$is_value"
            set is_value
        else if contains -- $token $__wg4netnsctl_valued
            set is_value yes
        else if not string match -q -- '-*' $token
            set -a words $token
        end
    end
    printf "%s\n" $words
end

function __wg4netnsctl_first -d "Is there no command yet?"
    test -z "$(__wg4netnsctl_words)"
end

function __wg4netnsctl_at -d "COUNT COMMANDS: is the cursor after COUNT operands of one of these?"
    set -l words (__wg4netnsctl_words)
    test (count $words) -eq (math $argv[1] + 1); and contains -- $words[1] $argv[2..]
end

function __wg4netnsctl_of -d "COMMANDS: may one of these, or any, have an option here?"
    set -l words (__wg4netnsctl_words)
    contains -- "$words[1]" run exec wg; and set -q words[2]; and return 1
    not set -q argv[1]; or contains -- "$words[1]" $argv
end

function __wg4netnsctl_other -d "Is the cursor in the command for run or exec?"
    set -l words (__wg4netnsctl_words)
    contains -- "$words[1]" run exec; and set -q words[2]
    and begin
        set -q words[3]; or not string match -q -- '-*' (commandline -ct)
    end
end

function __wg4netnsctl_complete_other
    set -l words (__wg4netnsctl_words)
    test "$words[3]" = --; and set -e words[3]
    __fish_complete_subcommand --commandline $words[3..] (commandline -ct)
end

function __wg4netnsctl_conf -d "Names in the user's directory, and files"
    set -l configuration $XDG_CONFIG_HOME ~/.config
    path basename $configuration[1]/wg4netnsd/*.conf | string replace -r '\.conf$' ''
    __fish_complete_path (commandline -ct) | string match -r '.*(?:/|\.conf)(?=\t|$)'
end

function __wg4netnsctl_tunnels
    wg4netnsctl list --quiet 2>/dev/null
end

complete -c wg4netnsctl -f
complete -c wg4netnsctl -n __wg4netnsctl_first -l version -d "Show the version"
complete -c wg4netnsctl -n __wg4netnsctl_of -s h -l help -d "Show help"

complete -c wg4netnsctl -n __wg4netnsctl_first -a run -d "Run a command behind a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a up -d "Bring up a tunnel in a new namespace"
complete -c wg4netnsctl -n __wg4netnsctl_first -a attach -d "Bring up a tunnel in an existing namespace"
complete -c wg4netnsctl -n __wg4netnsctl_first -a down -d "Take tunnels down"
complete -c wg4netnsctl -n __wg4netnsctl_first -a exec -d "Run a command in a tunnel's namespace"
complete -c wg4netnsctl -n __wg4netnsctl_first -a shell -d "Run your shell in a tunnel's namespace"
complete -c wg4netnsctl -n __wg4netnsctl_first -a list -d "List the tunnels"
complete -c wg4netnsctl -n __wg4netnsctl_first -a show -d "Show tunnels and their peers"
complete -c wg4netnsctl -n __wg4netnsctl_first -a monitor -d "Print events of tunnels and peers as they happen"
complete -c wg4netnsctl -n __wg4netnsctl_first -a reload -d "Apply a changed configuration to a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a restart -d "Replace a tunnel's engine"
complete -c wg4netnsctl -n __wg4netnsctl_first -a connect -d "Connect standard input and output to a host behind a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a proxy -d "Serve a SOCKS and HTTP proxy into a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a forward -d "Lead from a port of the host into a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a publish -d "Lead from a port in a tunnel to the host"
complete -c wg4netnsctl -n __wg4netnsctl_first -a forwards -d "List a tunnel's forwards"
complete -c wg4netnsctl -n __wg4netnsctl_first -a unforward -d "Remove forwards"
complete -c wg4netnsctl -n __wg4netnsctl_first -a wg -d "Run wg(8) on a tunnel"
complete -c wg4netnsctl -n __wg4netnsctl_first -a doctor -d "Show what this machine lacks"
complete -c wg4netnsctl -n __wg4netnsctl_first -a setup -d "Install systemd units and bus activation"

set -l new "__wg4netnsctl_of run up attach proxy"
complete -c wg4netnsctl -n $new -l name -x -d "Name of the tunnel; default: the file's"
complete -c wg4netnsctl -n $new -l interface -x -d "Name of the interface; default: wg0"
complete -c wg4netnsctl -n $new -l handshake -d "Wait until a peer has answered"
complete -c wg4netnsctl -n $new -l timeout -x -d "Give up after this many seconds; default: 20"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l via -x -a "(__wg4netnsctl_tunnels)" -d "Send everything through this tunnel"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l transit-pid -x -a "(__fish_complete_pids)" \
    -d "Send it from the namespace of this process"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l transit-fd -x -d "Send it with this open UDP socket"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l transit-netns -rF -d "Or from that of this file"
complete -c wg4netnsctl -n "__wg4netnsctl_of connect" -l timeout -x -d "Give up after this many seconds; default: 30"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l mtu -x -d "MTU instead of the file's"
complete -c wg4netnsctl -n "__wg4netnsctl_of run up attach proxy reload" -l ignore -x \
    -a "ExcludedApplications FwMark I1 I2 I3 I4 I5 IPv6 IncludedApplications Jc Jmax Jmin PostDown PostUp PreDown PreUp SaveConfig Table" \
    -d "Ignore this key of the file"
complete -c wg4netnsctl -n "__wg4netnsctl_of run" -l share-pids -d "Stay in the current PID namespace"
complete -c wg4netnsctl -n "__wg4netnsctl_of run exec shell" -l cap -x -a "net_admin net_raw" \
    -d "Let the command keep a capability"
complete -c wg4netnsctl -n "__wg4netnsctl_of exec shell" -l trust-root \
    -d "Enter a namespace whose root can take over what runs there"
complete -c wg4netnsctl -n "__wg4netnsctl_of up" -l foreground -d "Stay in the foreground and end with the tunnel"
complete -c wg4netnsctl -n "__wg4netnsctl_of attach" -l pid -x -a "(__fish_complete_pids)" \
    -d "PID of a process in the namespace"
complete -c wg4netnsctl -n "__wg4netnsctl_of attach" -l netns -rF -d "File of the namespace"
complete -c wg4netnsctl -n "__wg4netnsctl_of attach" -l lifetime -x -a "namespace persistent" \
    -d "When the tunnel ends"
complete -c wg4netnsctl -n "__wg4netnsctl_of up attach list show monitor doctor proxy forward publish forwards" -l json -d "Print JSON"
complete -c wg4netnsctl -n "__wg4netnsctl_of up" -l proxy -x -d "Serve SOCKS5, SOCKS4a and HTTP there"
complete -c wg4netnsctl -n "__wg4netnsctl_of up" -l forward -x -d "Listen, and connect through the tunnel"
complete -c wg4netnsctl -n "__wg4netnsctl_of up" -l publish -x -d "Listen in the tunnel, and connect from the host"
complete -c wg4netnsctl -n "__wg4netnsctl_of connect" -l pass-fd -d "Pass the descriptor to standard output, for ssh"
complete -c wg4netnsctl -n "__wg4netnsctl_of proxy" -l listen -x -d "Where to listen; default: 127.0.0.1:1080"
complete -c wg4netnsctl -n "__wg4netnsctl_of proxy" -l credentials -rF -d "Serve only users who know a line of it"
complete -c wg4netnsctl -n "__wg4netnsctl_of proxy forward" -l anyone -d "Let other users and machines connect"
complete -c wg4netnsctl -n "__wg4netnsctl_of proxy forward publish" -l idle -x \
    -d "End connections after as many seconds without a byte"
complete -c wg4netnsctl -n "__wg4netnsctl_of publish" -l proxy-protocol -d "Tell the target each client's address"
complete -c wg4netnsctl -n "__wg4netnsctl_of list" -s q -l quiet -d "Print only the names"
complete -c wg4netnsctl -n "__wg4netnsctl_of monitor" -l full -d "Do not shorten public keys"
complete -c wg4netnsctl -n "__wg4netnsctl_of setup" -l remove -d "Stop all tunnels and remove what setup installed"

complete -c wg4netnsctl -n "__wg4netnsctl_at 0 run up attach proxy; or __wg4netnsctl_at 1 reload" \
    -k -a "(__wg4netnsctl_conf)"
complete -c wg4netnsctl -n "__wg4netnsctl_at 0 exec shell show reload restart wg connect proxy forward publish forwards unforward" \
    -a "(__wg4netnsctl_tunnels)"
complete -c wg4netnsctl -n "__wg4netnsctl_of down monitor" -a "(__wg4netnsctl_tunnels)"
complete -c wg4netnsctl -n "__wg4netnsctl_at 1 wg" -a "addconf set setconf show showconf syncconf"
complete -c wg4netnsctl -n __wg4netnsctl_other -x -a "(__wg4netnsctl_complete_other)"
