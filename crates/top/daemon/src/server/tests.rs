mod bed;
mod life;
mod trouble;
