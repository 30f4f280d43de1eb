# What zsh offers at the end of command lines: zsh -f complete.zsh DIRECTORY LINE…
#
# Completion wants an interactive shell with its line editor, so there is one on a pseudo-terminal,
# which reads this file too. There compadd, by which all functions of completion offer their matches,
# prints them.
if [[ ! -o interactive ]]; then
    zmodload zsh/zpty
    zpty inner "TERM=dumb zsh -f -i"
    zpty -w inner "source ${(q)0:A} ${(q)1}"
    zpty -r -m inner discarded '*[~]ready~*'
    for line in $@[2,-1]; do
        zpty -w -n inner $line$'\t\x14'
        zpty -r -m inner offered '*[~]end~*'
        print -r -- ${offered//$'\r'}
    done
    zpty -d inner
    return
fi

fpath=($1 $fpath)
autoload -Uz compinit
compinit -D -u
zstyle ':completion:*' menu no
LISTMAX=0
compadd() {
    local -a offered
    builtin compadd -O offered "$@"
    ((!$#offered)) || print -rl -- "<"$^offered">"
    builtin compadd "$@"
}
at_end() {
    BUFFER=
    print '~end~'
}
zle -N at_end
bindkey '^T' at_end
bindkey '^I' complete-word
PROMPT=
print '~ready~'
