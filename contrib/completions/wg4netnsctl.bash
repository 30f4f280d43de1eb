# shellcheck shell=bash
# Completion of wg4netnsctl(1) by bash-completion.

_wg4netnsctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} command='' option='' operands=0 word i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == = ]]; then # --name=x is three words to bash
            continue
        elif [[ -n $option && ${COMP_WORDS[i - 1]} =~ ^(=|"$option")$ ]]; then
            option=''
        elif [[ $word =~ ^--(cap|credentials|forward|idle|ignore|interface|lifetime|listen|mtu|name|netns|pid|proxy|publish|timeout|transit-fd|transit-netns|transit-pid|via)$ ]]; then
            option=$word
        elif [[ $word == -- && $command =~ ^(run|exec)$ ]]; then
            _command_offset $((i + 1))
            return
        elif [[ $word != -* && -z $command ]]; then
            command=$word
        elif [[ $word != -* ]]; then
            operands=$((operands + 1))
        fi
    done
    [[ $cur != = ]] || cur=''

    if [[ -n $option ]]; then
        _wg4netnsctl_value "$option"
    elif [[ $cur == -* ]]; then
        _wg4netnsctl_options "$command"
    elif [[ -z $command ]]; then
        _wg4netnsctl_offer 'run up attach down exec shell list show monitor reload restart connect
            proxy forward publish forwards unforward wg doctor setup'
    else
        _wg4netnsctl_operand "$command" "$operands"
    fi
}

_wg4netnsctl_options() { # COMMAND
    local file='--ignore --mtu'
    local transit='--transit-fd --transit-netns --transit-pid --via'
    local new="--handshake --interface --name --timeout $file $transit"
    case $1 in
        run) _wg4netnsctl_offer "-h --help $new --cap --share-pids --" ;;
        up) _wg4netnsctl_offer "-h --help $new --foreground --forward --json --proxy --publish" ;;
        attach) _wg4netnsctl_offer "-h --help $new --json --lifetime --netns --pid" ;;
        exec) _wg4netnsctl_offer '-h --help --cap --trust-root --' ;;
        shell) _wg4netnsctl_offer '-h --help --cap --trust-root' ;;
        list) _wg4netnsctl_offer '-h --help -q --quiet --json' ;;
        show | doctor) _wg4netnsctl_offer '-h --help --json' ;;
        monitor) _wg4netnsctl_offer '-h --help --full --json' ;;
        reload) _wg4netnsctl_offer "-h --help $file $transit" ;;
        setup) _wg4netnsctl_offer '-h --help --remove' ;;
        connect) _wg4netnsctl_offer '-h --help --pass-fd --timeout' ;;
        proxy) _wg4netnsctl_offer "-h --help $new --anyone --credentials --idle --json --listen" ;;
        forward) _wg4netnsctl_offer '-h --help --anyone --idle --json' ;;
        publish) _wg4netnsctl_offer '-h --help --idle --json --proxy-protocol' ;;
        forwards) _wg4netnsctl_offer '-h --help --json' ;;
        down | restart | unforward | wg) _wg4netnsctl_offer '-h --help' ;;
        '') _wg4netnsctl_offer '-h --help --version' ;;
    esac
}

_wg4netnsctl_value() { # OPTION
    case $1 in
        --cap) _wg4netnsctl_offer 'net_admin net_raw' ;;
        --ignore)
            _wg4netnsctl_offer 'ExcludedApplications FwMark I1 I2 I3 I4 I5 IPv6 IncludedApplications Jc Jmax Jmin PostDown PostUp PreDown PreUp SaveConfig Table'
            ;;
        --lifetime) _wg4netnsctl_offer 'namespace persistent' ;;
        --credentials | --netns | --transit-netns) _wg4netnsctl_files ;;
        --pid | --transit-pid) _wg4netnsctl_offer "$(ps -U "$EUID" -o pid=)" ;;
        --via) _wg4netnsctl_offer "$(wg4netnsctl list --quiet 2>/dev/null)" ;;
    esac
}

_wg4netnsctl_operand() { # COMMAND NUMBER
    case $1,$2 in
        run,0 | up,0 | attach,0 | reload,1) _wg4netnsctl_conf ;;
        proxy,0)
            _wg4netnsctl_conf
            _wg4netnsctl_offer "$(wg4netnsctl list --quiet 2>/dev/null)"
            ;;
        run,1 | exec,1) _wg4netnsctl_offer -- ;;
        wg,1) _wg4netnsctl_offer 'addconf set setconf show showconf syncconf' ;;
        down,* | monitor,* | exec,0 | shell,0 | show,0 | reload,0 | restart,0 | wg,0 | \
            connect,0 | forward,0 | publish,0 | forwards,0 | unforward,0)
            _wg4netnsctl_offer "$(wg4netnsctl list --quiet 2>/dev/null)"
            ;;
    esac
}

_wg4netnsctl_conf() { # names in the user's directory, and files
    local directory=${XDG_CONFIG_HOME:-$HOME/.config}/wg4netnsd path
    for path in "$directory"/*.conf; do
        path=${path##*/}
        _wg4netnsctl_add "${path%.conf}"
    done
    _wg4netnsctl_files '!*.conf'
}

_wg4netnsctl_files() { # [PATTERN of files to leave out]
    local path
    compopt -o filenames 2>/dev/null
    while read -r path; do
        COMPREPLY+=("$path")
    done < <(compgen -f -X "${1-}" -- "$cur"; compgen -d -- "$cur")
}

_wg4netnsctl_offer() { # WORDS separated by blanks
    local words word
    read -r -d '' -a words <<<"$1"
    for word in "${words[@]}"; do
        _wg4netnsctl_add "$word"
    done
}

_wg4netnsctl_add() { # WORD
    # Not by `compgen -W`, which expands it: $(…) in a file's name would be run. Nor may it have
    # characters that mean something once it is on the command line, without quotes.
    [[ $1 != "$cur"* || $1 == *[!A-Za-z0-9_.@-]* ]] || COMPREPLY+=("$1")
}

complete -F _wg4netnsctl wg4netnsctl
